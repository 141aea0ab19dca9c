"""Deadlines: in the queue, in the engine, in a stream, in a thought; by field and by header."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway.policy.deadline import Deadline, thinking_within
from gateway.thinking.effort import Plan
from tests.crowded import ASK, CHAT, Crowded
from tests.scripted import KNOWS_MARKS, Script, ScriptedEngine, make_gateway
from tests.unit.test_fleet import until

SOON = {"request-timeout-ms": "40"}
LATER = {"request-timeout-ms": "600000"}
QUESTION = {"question": "2+2?", "max_tokens": 1000, "thinking_depth": 2}
CALLS = [("/generate", ASK), ("/thinking", QUESTION), ("/batch_generate", {"prompts": ["x"]})]


class Silent:
    """In the place of vLLM's app: says nothing, or a frame and then nothing, until the caller leaves."""

    def __init__(self, streams: bool) -> None:
        self.streams = streams
        self.left = asyncio.Event()
        self.app = Starlette(routes=[Route("/{path:path}", self._serve, methods=["POST"])])

    async def _serve(self, request: Request) -> Response:
        await request.body()
        if self.streams:
            return StreamingResponse(self._frames(), media_type="text/event-stream")
        message = await request.receive()  # as vLLM's handlers do beside their work
        assert message["type"] == "http.disconnect"
        self.left.set()
        return Response(b"null", media_type="application/json")

    async def _frames(self) -> AsyncIterator[bytes]:
        try:
            yield b"data: 1\n\n"
            await asyncio.Event().wait()
        finally:
            self.left.set()


def stuck(gate_at: int = 0) -> ScriptedEngine:
    """An engine whose jobs never end."""
    engine = ScriptedEngine("first")
    gate = asyncio.Event()
    engine.script = lambda job: Script(["o", "k"], gate=gate, gate_at=gate_at)
    return engine


@pytest.mark.parametrize(("path", "body"), CALLS)
@pytest.mark.parametrize("by", ["field", "header"])
async def test_running_work_is_aborted_and_answered_with_504(
    path: str, body: dict[str, Any], by: str
) -> None:
    engine = stuck()
    gateway = make_gateway(engine)
    given = {**body, "deadline_s": 0.04} if by == "field" else body
    headers = SOON if by == "header" else {}

    response = await gateway.client.post(path, json=given, headers=headers)

    told = response.json()
    told = told["results"][0] if path == "/batch_generate" else told
    assert (told["status"], told["code"]) == (504, "deadline_exceeded")
    assert told["param"] == ("deadline_s" if by == "field" else "Request-Timeout-Ms")
    assert engine.aborted and not engine.running
    assert gateway.fleet.in_flight() == 0


async def test_the_sooner_of_field_and_header_counts() -> None:
    client = make_gateway(stuck()).client

    for seconds, headers in ((0.04, LATER), (600, SOON)):
        response = await client.post(
            "/generate", json=ASK | {"deadline_s": seconds}, headers=headers
        )
        assert response.status_code == 504

    assert response.json()["param"] == "Request-Timeout-Ms"


@pytest.mark.parametrize(
    "value",
    ["", "soon", "-5", "0", "1.5", "1e3", "99999999999999999999", "9" * 400, "9" * 5000, "٣"],
)
@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/v1/messages"])
async def test_a_time_that_is_none_is_refused_by_name(path: str, value: str) -> None:
    engine = ScriptedEngine("first")

    response = await make_gateway(engine).client.post(
        path, json=CHAT, headers=[(b"request-timeout-ms", value.encode())]
    )

    assert response.status_code == 400
    assert "Request-Timeout-Ms" in response.text
    assert not engine.jobs and not engine.bodies


@pytest.mark.parametrize(
    "path", ["/generate", "/thinking", "/v1/chat/completions", "/v1/responses", "/v1/messages"]
)
async def test_in_the_queue_it_is_504_at_once_and_the_place_is_free(
    tmp_path: Path, path: str
) -> None:
    crowded = Crowded(tmp_path)
    (first,) = crowded.asks("a")
    await until(lambda: bool(crowded.gates))
    body = ASK if path == "/generate" else CHAT

    response = await crowded.client.post(
        path, json=body, headers={"authorization": f"Bearer {crowded.keys['b']}", **SOON}
    )

    assert response.status_code == 504
    assert "deadline_exceeded" in response.text
    assert (crowded.model.admission.queued, len(crowded.engine.jobs)) == (0, 1)
    crowded.gates[0].set()
    assert (await first).status_code == 200
    assert crowded.idle()


async def test_a_native_stream_that_has_begun_ends_in_an_error_event() -> None:
    engine = stuck(gate_at=1)

    response = await make_gateway(engine).client.post(
        "/generate", json=ASK | {"stream": True, "deadline_s": 0.04}
    )

    assert response.status_code == 200
    events = [line for line in response.text.splitlines() if line.startswith("event: ")]
    assert events == ["event: generate.delta", "event: generate.failed"]
    assert '"deadline_exceeded"' in response.text
    assert engine.aborted


ERRORS: list[tuple[str, str, list[str]]] = [
    ("/v1/chat/completions", "", ["error", "code"]),
    ("/v1/completions", "", ["error", "code"]),
    ("/v1/responses", "event: error", ["code"]),
    ("/v1/messages", "event: error", ["error", "code"]),
]


@pytest.mark.parametrize(("path", "event", "place"), ERRORS)
async def test_a_v1_stream_that_has_begun_ends_in_its_apis_error_event(
    path: str, event: str, place: list[str]
) -> None:
    engine, silent = ScriptedEngine("first"), Silent(streams=True)
    engine.app = silent.app
    gateway = make_gateway(engine, thinking_guarantee=False)

    response = await gateway.client.post(path, json=CHAT | {"prompt": "x"}, headers=SOON)

    frames = response.text.strip().split("\n\n")
    assert frames[0] == "data: 1"
    head, _, data = frames[1].rpartition("data: ")
    told = json.loads(data)
    for name in place:
        told = told[name]
    assert (head.strip(), told) == (event, "deadline_exceeded")
    assert silent.left.is_set()
    assert gateway.fleet.in_flight() == 0


@pytest.mark.parametrize("guarantee", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_a_plain_v1_request_is_told_to_stop_and_answered_with_504(
    path: str, guarantee: bool
) -> None:
    engine, silent = ScriptedEngine("first"), Silent(streams=False)
    engine.app = silent.app
    gateway = make_gateway(engine, thinking_guarantee=guarantee)

    response = await gateway.client.post(path, json=CHAT, headers=SOON)

    assert response.status_code == 504
    assert "deadline_exceeded" in response.text
    assert silent.left.is_set()


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/thinking"])
async def test_a_deadline_that_is_far_away_changes_nothing(path: str) -> None:
    client = make_gateway(ScriptedEngine("first")).client
    body = CHAT if path != "/generate" else ASK

    with_one = await client.post(path, json=body, headers=LATER)

    assert with_one.status_code == 200


def thoughts(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_a_thought_is_ended_in_time_for_an_answer() -> None:
    engine = ScriptedEngine("first")
    gate = asyncio.Event()

    def script(job: Any) -> Script:
        if not job.request_id.endswith("-think"):
            return Script(["Four."])
        return Script(list("well, it "), gate=gate, gate_at=2)

    engine.script = script
    gateway = make_gateway(engine)
    call = asyncio.create_task(
        gateway.client.post("/thinking", json=QUESTION, headers={"request-timeout-ms": "60000"})
    )
    await until(lambda: bool(gateway.app.state.running._plans))
    (plan,) = gateway.app.state.running._plans.values()
    await until(lambda: bool(plan.runs) and plan.runs[0].phase == "thinking")

    plan.answer_now("deadline")  # what the timer does when the answer's share of the time begins
    gate.set()

    body = thoughts(await call)
    assert (body["answer"], body["reasoning"]["end_reason"]) == ("Four.", "deadline")


async def test_the_timer_ends_the_thought_before_the_deadline() -> None:
    plan = Plan(level=2, thinks=True)
    loop = asyncio.get_running_loop()

    with thinking_within(Deadline(loop.time() + 0.02, 0.02, "deadline_s"), plan, None, 10):
        await until(lambda: plan.hurried is not None)

    assert plan.hurried == "deadline"


async def test_no_timer_outlives_its_request() -> None:
    plan = Plan(level=2, thinks=True)
    loop = asyncio.get_running_loop()

    with thinking_within(Deadline(loop.time() + 100, 100, "deadline_s"), plan, None, 10):
        pass

    assert not [each for each in loop._scheduled if not each.cancelled()]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("speed", "seconds", "ceiling", "expected"),
    [
        (None, 10.0, None, None),  # unknown: not cut
        (None, 10.0, 500, 500),
        (100.0, 10.0, None, 740),  # of 1,000 tokens: a quarter for the answer, 10 for the phrase
        (100.0, 10.0, 300, 300),
        (1.0, 10.0, None, 0),  # nothing fits: answer at once
    ],
)
async def test_the_budget_is_cut_to_what_fits(
    speed: float | None,
    seconds: float,
    ceiling: int | None,
    expected: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = Plan(level=2, ceiling=ceiling, thinks=True)
    now = float(int(asyncio.get_running_loop().time()))  # so that adding and taking away is exact
    monkeypatch.setattr("gateway.policy.deadline.time.monotonic", lambda: now)

    with thinking_within(Deadline(now + seconds, seconds, "deadline_s"), plan, speed, 10):
        assert plan.ceiling == expected


async def test_a_request_says_that_its_budget_was_cut() -> None:
    engine = ScriptedEngine("first")
    engine.script = lambda job: Script(["yes"])
    gateway = make_gateway(engine)
    gateway.model.admission.speed = 0.2

    response = await gateway.client.post("/thinking", json=QUESTION | {"deadline_s": 2000})

    budget = thoughts(response)["budget"]
    phrase = len(KNOWS_MARKS.phrase)
    assert budget["clamped"] is True
    assert 250 - phrase < budget["applied"] <= 300 - phrase  # of 400 tokens, 100 are the answer's


async def test_speed_is_learnt_from_requests_that_drew_enough() -> None:
    engine = ScriptedEngine("first")
    engine.script = lambda job: Script(["few"])
    gateway = make_gateway(engine)

    await gateway.client.post("/generate", json=ASK)
    assert gateway.model.admission.speed is None
    engine.script = lambda job: Script(["more than sixteen tokens of text"])
    await gateway.client.post("/generate", json=ASK)

    assert gateway.model.admission.speed is not None


@pytest.mark.parametrize("seconds", [1e308, 86_401])
@pytest.mark.parametrize(("path", "body"), CALLS[:2])
async def test_a_deadline_beyond_a_day_is_refused_by_name(
    path: str, body: dict[str, Any], seconds: float
) -> None:
    gateway = make_gateway(ScriptedEngine("first"))
    gateway.model.admission.speed = 50.0  # known, so that a thought is cut to what fits

    answer = await gateway.client.post(path, json=body | {"deadline_s": seconds})

    assert answer.status_code == 400
    assert "deadline_s" in answer.json()["detail"]
