"""Which prefix cache a request uses: its tenant's.

With one cache for all, the time to the first token tells whether somebody else has sent the same prompt
before (CVE-2025-46570). vLLM puts the salt into the hash of a prompt's first block, and so into all others.

The tenant's name is enough: a caller chooses only the inner part, never the whole, so nobody can make
another tenant's salt. No secret of the process is in it, so that gateways that share a cache behind vLLM
share it for each tenant as well.
"""

import hashlib
import json
from contextvars import ContextVar

# The tenant of the request being served. None: no keys are configured, all callers are one.
SALTED_FOR: ContextVar[str | None] = ContextVar("salted_for", default=None)


def salted(own: str | None) -> str | None:
    """The salt for a caller's `own` one (the field `cache_salt`): inside the tenant's, never instead."""
    tenant = SALTED_FOR.get()
    if tenant is None:
        return own
    return hashlib.sha256(json.dumps([tenant, own]).encode()).hexdigest()
