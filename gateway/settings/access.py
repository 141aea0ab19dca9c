"""Who may call, and what is kept of it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode


class Access(BaseSettings):
    api_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="The key callers must send, 16 characters or more. Unset: no check, loopback only.",
    )
    keys_file: Path | None = Field(
        default=None,
        description="Tenants and the hashes of their keys; `gateway keys create` writes it. Read anew when "
        "it changes.",
    )
    admin_key: SecretStr | None = Field(
        default=None,
        description="The admin key that `gateway switch`, `reload` ... send. Unset: GATEWAY_API_KEY.",
    )
    trusted_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Names that `Host` may give, comma-separated; `*.example.com` takes all below. Unset: "
        "any with a key, and only addresses and localhost where none is needed.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Web pages that may call from a browser, as https://chat.example.com, comma-separated. "
        "Unset: none.",
    )
    metrics_open: bool = Field(
        default=False, description="true: `/metrics` of the admin listener answers without a key."
    )
    jwt_issuer: str | None = Field(
        default=None, description="Tokens of this OpenID Connect issuer are taken as keys, too."
    )
    jwt_audience: str | None = Field(default=None, description="Whom those tokens must be for.")
    jwt_jwks_url: str | None = Field(
        default=None, description="Where the issuer's public keys are; https, or http on loopback."
    )
    jwt_tenant_claim: str = Field(
        default="tenant", description="The claim that names a tenant of the keys file."
    )
    jwt_algorithms: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("RS256", "ES256", "EdDSA"),
        description="Signatures that are taken, comma-separated; public-key ones only.",
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="A Redis that counts limits for several gateways together. Unset: each by itself.",
    )
    redis_away: Literal["local", "refuse"] = Field(
        default="local",
        description="While Redis is away: `local` counts in each gateway by itself, `refuse` answers 503.",
    )
    state_dir: Path = Field(
        default=Path("~/.local/state/thinking-gateway"),
        description="A folder for what the gateway keeps: usage and the audit log.",
    )
    usage_url: SecretStr | None = Field(
        default=None,
        description="Where usage rows go, as a SQLAlchemy URL. Unset: SQLite in the state folder. `off`: "
        "nowhere.",
    )
    usage_keep_days: int | None = Field(
        default=None,
        ge=1,
        description="Usage rows older than this are deleted. Unset: kept for ever.",
    )
    audit_log: Path | None = Field(
        default=None,
        description="What admins did, a JSON line each. Unset: audit.jsonl in the state folder. `off`: none.",
    )

    @property
    def shared(self) -> bool:
        """More than one tenant can come."""
        return bool(self.keys_file or self.jwt_issuer)
