"""The requests that think now, by request id, so that somebody can tell one to answer."""

import contextlib
from collections.abc import Iterator

from gateway.errors import NotFound
from gateway.thinking.effort import PLAN, Plan

# Ids in bodies are the request id behind one of these.
PREFIXES = ("think-", "chatcmpl-", "resp_", "msg_")


class Running:
    """Registered plans. An id is the `X-Request-Id`, or the id in the body; each tenant has its own."""

    def __init__(self) -> None:
        self._plans: dict[tuple[str, str], Plan] = {}

    @contextlib.contextmanager
    def registered(self, request_id: str, plan: Plan, tenant: str = "") -> Iterator[None]:
        """While it lasts the plan can be found, and is that of the requests made inside."""
        key = (tenant, request_id)
        self._plans[key] = plan
        token = PLAN.set(plan)
        try:
            yield
        finally:
            PLAN.reset(token)
            if self._plans.get(key) is plan:
                del self._plans[key]

    def __iter__(self) -> Iterator[Plan]:
        return iter(tuple(self._plans.values()))

    def answer_now(self, request_id: str, tenant: str = "") -> str:
        """End the thought of a running request. Returns its phase: waiting, thinking, answering or done.

        Raises:
            NotFound: no such request of that tenant runs (it may have ended).
        """
        plan = self._plans.get((tenant, request_id))
        for prefix in PREFIXES:
            plan = plan or self._plans.get((tenant, request_id.removeprefix(prefix)))
        if plan is None:
            raise NotFound(f"no request {request_id} is thinking; it may have ended")
        return plan.answer_now()
