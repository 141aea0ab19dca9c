"""`gateway validate` finds nothing on a gateway that is as documented, and names what is not."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Mounted

from gateway.engines.slot import State
from gateway.engines.types import Job
from gateway.validate import probes, speed
from gateway.validate.probes import OTHERS, ROUTES, Flaw, Route, answered_now, docs, page
from gateway.validate.refusals import Refusal, refusals
from gateway.validate.report import Outcome, Report
from gateway.validate.run import run
from gateway.validate.speed import Speed
from gateway.validate.target import Address, Target, TargetError, models_of, opened, target_of
from gateway.web import PUBLIC_FILES
from tests.listening import listening
from tests.routes import public_routes
from tests.scripted import PATIENCE_S, Script, ScriptedEngine, client_of, make_gateway

KEY = "a-key-of-sixteen-characters"
NATIVE = [route for route in ROUTES if route.path in ("/generate", "/batch_generate", "/stats")]


def target(**settings: Any) -> Target:
    engine = ScriptedEngine()
    engine.script = said_hello
    client = make_gateway(engine, **settings).client
    key = settings.get("api_key")
    if key:
        client.headers["authorization"] = f"Bearer {key}"
    return Target(client, "scripted", key)


def said_hello(job: Job) -> Script:
    return Script(("hel", "lo"))


def answering(body: Any, status: int = 200, **headers: str) -> Target:
    """Another server, which says the same to everything."""

    async def same(request: Request) -> Response:
        return JSONResponse(body, status, headers)

    app = Starlette(routes=[Mounted("/{path:path}", same, methods=["GET", "POST"])])
    return Target(client_of(app), "m", None)


def test_every_route_that_is_served_is_asked() -> None:
    pages = {f"GET {path}" for path in PUBLIC_FILES}  # one check of OTHERS
    asked = {*(route.name for route in ROUTES), *(name for name, _ in OTHERS)}

    assert public_routes() - pages == asked - {"GET / and /page/*"}


async def test_the_page_and_the_docs_are_looked_at_and_may_be_off() -> None:
    assert await page(target()) == f"{len(PUBLIC_FILES)} files"
    assert await page(target(page=False)) == "off"
    assert await docs(target()) == "200"
    with pytest.raises(Flaw, match="/openapi"):
        await docs(answering({}))


async def test_a_page_without_one_of_its_files_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "PUBLIC_FILES", {**PUBLIC_FILES, "/page/gone.js": "gone.js"})

    with pytest.raises(Flaw, match=r"/page/gone\.js: 404"):
        await page(target())


@pytest.mark.parametrize("path", ["/v1/models/{model}", "/thinking", "/openapi.json", "/ping"])
async def test_what_is_only_read_is_asked_with_the_model_in_its_place(path: str) -> None:
    (route,) = [each for each in ROUTES if each.path == path and each.body is None]

    assert await route.plain(target()) == "200"


async def test_a_thought_that_runs_is_told_to_answer() -> None:
    engine, gate = ScriptedEngine(), asyncio.Event()
    engine.script = lambda job: Script(["x"] * 9, gate=gate, gate_at=2)
    gateway = make_gateway(engine)
    async with listening(gateway) as url, httpx.AsyncClient(base_url=url) as client:
        asked = asyncio.create_task(answered_now(Target(client, "scripted", None)))
        async with asyncio.timeout(PATIENCE_S):
            while not any(plan.hurried for plan in gateway.app.state.running):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        gate.set()

        assert await asked == "while thinking; the thought ended by answer_now"


async def test_a_thought_that_is_told_and_goes_on_is_named() -> None:
    engine = ScriptedEngine()
    engine.script = lambda job: Script(["x"] * 9)
    client = make_gateway(engine).client  # whose answers are whole before they are read

    with pytest.raises(Flaw, match="404"):
        await answered_now(Target(client, "scripted", None))
    with pytest.raises(Flaw, match="no end"):
        await answered_now(answering({}))


@pytest.mark.parametrize("settings", [{}, {"api_key": KEY}], ids=["open", "with a key"])
async def test_every_refusal_is_as_documented(settings: dict[str, str]) -> None:
    there = target(**settings)
    cases = refusals(there)
    told = [await case.check(there) for case in cases]

    assert len(told) == len(cases) == (15 if settings else 14)


@pytest.mark.parametrize("route", NATIVE, ids=lambda route: route.path)
async def test_a_good_answer_passes_plain_and_streamed(route: Route) -> None:
    there = target()
    await route.plain(there)
    if route.piece is not None:
        assert "pieces" in await route.streamed(there)


@pytest.mark.parametrize(
    ("there", "flaw"),
    [
        (answering({"text": "x"}, 500), "500"),
        (answering({"text": "x"}), "no X-Request-Id"),
        (answering({"text": ""}, 200, **{"x-request-id": "1"}), "nothing in the answer"),
    ],
    ids=["status", "request id", "empty"],
)
async def test_a_bad_answer_is_named(there: Target, flaw: str) -> None:
    with pytest.raises(Flaw, match=flaw):
        await NATIVE[0].plain(there)


async def test_a_stream_that_is_none_is_named() -> None:
    with pytest.raises(Flaw, match="content-type"):
        await NATIVE[0].streamed(answering({}))


@pytest.mark.parametrize(
    ("body", "flaw"),
    [
        ({"detail": "x"}, "no code|no title"),
        ({"type": "t", "title": "t", "status": 404, "detail": "d", "code": "other"}, "code is"),
    ],
)
async def test_a_refusal_in_another_shape_is_named(body: dict[str, Any], flaw: str) -> None:
    case = Refusal("r", "/generate", 404, "not_found", {})
    whole = {**body, "request_id": "1"}
    with pytest.raises(Flaw, match=flaw):
        await case.check(answering(whole, 404, **{"x-request-id": "1"}))


async def test_a_refusal_without_its_request_id_is_named() -> None:
    body = {"type": "t", "title": "t", "status": 404, "detail": "d", "code": "not_found"}
    with pytest.raises(Flaw, match="request id"):
        await Refusal("r", "/generate", 404, "not_found", {}).check(answering(body, 404))


async def test_what_is_not_there_fails_checks_and_not_the_run() -> None:
    report = await run(answering({}), None, 2, lambda text, fraction: None)

    failed = {(each.group, each.name) for each in report.failed}
    assert ("route", "POST /v1/chat/completions") in failed and ("load", "many at once") in failed
    assert report.as_json()["passed"] is False


@pytest.mark.parametrize("status", [200, 400, 404])
async def test_a_list_where_an_object_is_expected_fails_checks_and_not_the_run(status: int) -> None:
    there = answering(["hello"], status, **{"x-request-id": "validate-1"})
    report = await run(there, None, 2, lambda text, fraction: None)

    assert {each.group for each in report.failed} == {"route", "stream", "refusal", "load"}


async def test_a_crowd_is_answered_each_for_itself() -> None:
    assert await speed.crowd(target(), 5) == "5 answers at once"


async def _looked_at(client: httpx.AsyncClient, model: str | None = None) -> Target:
    return await target_of(client, None, model, 0)


async def test_the_first_model_is_taken_and_an_unknown_one_refused() -> None:
    client = target().client

    assert (await _looked_at(client)).model == "scripted"
    with pytest.raises(TargetError, match="it serves: scripted"):
        await _looked_at(client, "other")


async def test_a_loading_gateway_is_told_with_the_remedy() -> None:
    gateway = make_gateway(ScriptedEngine())
    gateway.model.slot, gateway.model.state = None, State.LOADING

    with pytest.raises(TargetError, match="it is loading; wait for it with --wait"):
        await _looked_at(gateway.client)


async def test_a_missing_key_is_told_with_the_remedy() -> None:
    client = make_gateway(ScriptedEngine(), api_key=KEY).client

    with pytest.raises(TargetError, match="wants a key: set GATEWAY_API_KEY"):
        await _looked_at(client)


async def test_a_name_that_is_not_trusted_is_told_in_the_gateways_own_words() -> None:
    client = make_gateway(ScriptedEngine(), api_key=KEY, trusted_hosts="api.example.com").client

    with pytest.raises(TargetError, match=r"is not called 'localhost' .*GATEWAY_TRUSTED_HOSTS"):
        await _looked_at(client)


async def test_it_is_called_by_the_name_that_is_given() -> None:
    gateway = make_gateway(ScriptedEngine(), trusted_hosts="api.example.com")
    async with (
        listening(gateway) as url,
        opened(Address(url, host="api.example.com"), None, None, 0) as there,
    ):
        assert there.model == "scripted"
        assert (await there.client.get("/stats")).status_code == 200


@pytest.mark.parametrize("url", ["http://h:port", "http://[::1"])
async def test_what_is_no_url_is_told(url: str) -> None:
    with pytest.raises(TargetError, match="is no URL"):
        async with opened(Address(url), None, None, 0):
            pass


@pytest.mark.parametrize("body", [["hello"], {"data": 1}, {}, {"data": [1]}])
async def test_a_list_of_models_in_another_form_is_told(body: Any) -> None:
    with pytest.raises(TargetError, match="no list of models"):
        await models_of(answering(body).client)


async def test_another_server_and_none_at_all_are_told() -> None:
    with pytest.raises(TargetError, match="not as this gateway"):
        await _looked_at(answering(["hello"]).client)
    async with httpx.AsyncClient(base_url="http://127.0.0.1:9") as nobody:
        with pytest.raises(TargetError, match="does not answer"):
            await _looked_at(nobody)


def test_the_report_is_markdown_and_json(tmp_path: Path) -> None:
    figures = Speed(4, 2, 128, 2.0, 0.1, 0.2, 0.01, 0.02, 64.0)
    outcomes = [
        Outcome("route", "/health", True, "200", 0.1),
        Outcome("route", "/x", False, "a|b", 1),
    ]
    report = Report("http://x", "m", True, outcomes, figures)

    markdown, data = report.write(tmp_path / "out")

    text = markdown.read_text(encoding="utf-8")
    assert "1 of 2 checks failed" in text and "**FAIL**" in text and "a\\|b" in text
    assert "64.0 tokens/s" in text
    told = json.loads(data.read_text(encoding="utf-8"))
    assert told["counts"] == {"total": 2, "failed": 1} and told["benchmark"]["tokens"] == 128


def test_quantiles_of_one_value_and_of_many() -> None:
    assert speed.quantile([0.5], 95) == 0.5
    assert speed.quantile([1.0, 2.0, 3.0], 50) == 2.0
