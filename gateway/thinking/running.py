"""The requests that think now, by request id, so that somebody can tell one to answer."""

import contextlib
from collections.abc import Iterator

from gateway.errors import NotFound
from gateway.thinking.effort import PLAN, Plan

# Ids in bodies are the request id behind one of these.
PREFIXES = ("think-", "chatcmpl-", "resp_", "msg_")


class Running:
    """Registered plans. An id is the `X-Request-Id`, or the id in the body."""

    def __init__(self) -> None:
        self._plans: dict[str, Plan] = {}

    @contextlib.contextmanager
    def registered(self, request_id: str, plan: Plan) -> Iterator[None]:
        """While it lasts the plan can be found, and is that of the requests made inside."""
        self._plans[request_id] = plan
        token = PLAN.set(plan)
        try:
            yield
        finally:
            PLAN.reset(token)
            if self._plans.get(request_id) is plan:
                del self._plans[request_id]

    def answer_now(self, request_id: str) -> str:
        """End the thought of a running request. Returns its phase: waiting, thinking, answering or done.

        Raises:
            NotFound: no such request runs (it may have ended).
        """
        plan = self._plans.get(request_id)
        for prefix in PREFIXES:
            plan = plan or self._plans.get(request_id.removeprefix(prefix))
        if plan is None:
            raise NotFound(f"no request {request_id} is thinking; it may have ended")
        return plan.answer_now()
