"""Schemathesis, as the tests use it: bodies by an OpenAPI description, good ones and spoiled ones.

Deterministic, and bounded by a number of examples instead of time.
"""

from collections import Counter
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.core.transport import Response

Operation = APIOperation[Any, Any, Any, Any]
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
# A good body without `max_tokens` is answered for as long as the context is, minutes on a slow machine.
TIMEOUT_S = 20
TRIES = 5  # of what was refused for want of room, and told so
STILL_ANSWERING = 0  # counted in the place of a status; the caller hangs up


def operations(document: dict[str, Any]) -> list[Operation]:
    """Of each path and method.

    Raises:
        AssertionError: the description cannot be read.
    """
    read = [
        each.ok()
        for each in schemathesis.openapi.from_dict(document).get_all_operations()
        if isinstance(each, Ok)
    ]
    assert len(read) == sum(len(methods) for methods in document["paths"].values())
    return read


def patiently(case: Case[Any], url: str, session: requests.Session) -> Response:
    """The answer; a grammar that a busy machine could not try in time is sent again."""
    for _ in range(TRIES):
        response = case.call(base_url=url, session=session, timeout=TIMEOUT_S)
        if response.status_code != 503 or "retry-after" not in response.headers:
            break
    return response


def fuzz(operation: Operation, mode: GenerationMode, url: str, examples: int) -> Counter[int]:
    """How often each status was the answer.

    Raises:
        AssertionError: a 5xx, but for a deadline of the body's own; the message is the request that got it.
    """
    told: Counter[int] = Counter()
    session = requests.Session()

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # what failed is told as it is; making it small takes minutes
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def each(case: Case[Any]) -> None:
        try:
            response = patiently(case, url, session)
        except (requests.exceptions.ReadTimeout, requests.exceptions.ConnectionError) as error:
            # In the middle of a body requests has another name for it.
            if "Read timed out" not in str(error):
                raise
            told[STILL_ANSWERING] += 1
            return
        told[response.status_code] += 1
        if (
            response.status_code == 504
            and isinstance(case.body, dict)
            and "deadline_s" in case.body
        ):
            return  # the body gave it no more time
        assert response.status_code < 500, (
            f"{response.status_code} {response.text[:300]}\n{case.as_curl_command()[:2000]}"
        )

    with session:
        each()
    return told
