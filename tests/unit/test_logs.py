"""Log lines: one record is one line that parses, says whose it is, and holds no prompt and no secret."""

import contextvars
import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from gateway.observability import logs
from gateway.observability.lines import CONTROLS, Kind, engine_handler, handler
from tests.scripted import (
    Gateway,
    Script,
    ScriptedEngine,
    client_of,
    make_admin,
    make_gateway,
    make_settings,
)
from tests.tenants import Tenants
from tests.wire import Wire

CANARY = "the canary sings at noon"
FORGED = "x\r\n2026-11-24 ERROR gateway: forged\x1b[31m\u2028y"


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def written(stream: io.StringIO) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The JSON lines that the gateway's loggers have written."""
    yield from _listening(stream, "json")


@pytest.fixture
def text(stream: io.StringIO) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    yield from _listening(stream, "text")


def _listening(stream: io.StringIO, kind: Kind) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    ours, listener = logging.getLogger("gateway"), handler(kind, stream)
    before = ours.level
    ours.addHandler(listener)
    ours.setLevel("INFO")
    try:
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    finally:
        ours.removeHandler(listener)
        ours.setLevel(before)


def speaking(*texts: str) -> ScriptedEngine:
    engine = ScriptedEngine("first")
    engine.script = lambda job: Script(texts, cached=3)
    return engine


async def test_a_request_is_one_line_with_tokens_and_times(
    tmp_path: Path, written: Callable[[], list[dict[str, Any]]]
) -> None:
    tenants = Tenants(tmp_path, {"acme": {}})
    tenants.engine.script = lambda job: Script(["Hm", "</think>", "Four"], cached=3)
    question = {"question": "2+2?", "stream": True, "thinking_depth": 1}

    response = await tenants.post("acme", "/thinking", question)

    (line,) = [each for each in written() if each["logger"] == "gateway.access"]
    expected = {
        "level": "INFO",
        "request_id": response.headers["x-request-id"],
        "tenant": "acme",
        "method": "POST",
        "route": "/thinking",
        "status": 200,
        "outcome": "ok",
        "model": "first",
        "profile": "first",
        "stream": True,
        "cached_tokens": 3,
        "thinking_tokens": 2,
    }
    assert {name: line.get(name) for name in expected} == expected
    assert line["prompt_tokens"] > 0 < line["answer_tokens"]
    assert 0 < line["ttft_s"] <= line["duration_s"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00", line["time"])


async def test_an_error_is_named_by_its_code(
    written: Callable[[], list[dict[str, Any]]],
) -> None:
    gateway = make_gateway(ScriptedEngine("first"))

    await gateway.client.post("/generate", json={"prompt": "x", "model": "absent"})

    assert (written()[-1]["outcome"], written()[-1]["error"]) == ("client_error", "model_not_found")


@pytest.mark.parametrize("path", ["/health/live", "/health"])
async def test_probes_have_no_line_at_info(
    path: str, written: Callable[[], list[dict[str, Any]]]
) -> None:
    gateway = make_gateway(ScriptedEngine("first"))

    await gateway.client.get(path)

    assert written() == []


async def test_the_access_log_can_be_off(written: Callable[[], list[dict[str, Any]]]) -> None:
    gateway = make_gateway(ScriptedEngine("first"), access_log=False)

    await gateway.client.post("/generate", json={"prompt": "x"})

    assert written() == []


def broken(error: Exception) -> Gateway:
    engine = ScriptedEngine("first")
    engine.script = lambda job: Script(failure=error)
    return make_gateway(engine)


async def test_an_exception_is_one_field_and_has_the_requests_id(
    written: Callable[[], list[dict[str, Any]]],
) -> None:
    try:
        raise KeyError("inner")
    except KeyError as cause:
        error = RuntimeError("outer")
        error.__cause__ = cause
    gateway = broken(error)

    response = await gateway.client.post("/generate", json={"prompt": "x"})

    failed, access = written()
    assert failed["request_id"] == access["request_id"] == response.headers["x-request-id"]
    assert (failed["level"], access["error"]) == ("ERROR", "internal_error")
    inner, _, outer = failed["exception"].partition("then:")
    assert "KeyError: 'inner'" in inner and "RuntimeError: outer" in outer
    assert "_before" in outer, "the frames are there"


class Number(BaseModel):
    value: int


def quoting() -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Number.model_validate({"value": CANARY})
    return caught.value


@pytest.mark.parametrize(
    "call",
    [
        ("/thinking", {"question": CANARY}),
        ("/generate", {"prompt": CANARY}),
        ("/generate", {"prompt": CANARY, "temperature": CANARY}),
        ("/batch_generate", {"prompts": [CANARY, CANARY]}),
        ("/batch_generate", {"requests": [{"prompt": CANARY, CANARY: 1}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": CANARY}]}),
    ],
)
@pytest.mark.parametrize("failure", [None, quoting()], ids=["well", "failing"])
async def test_no_prompt_answer_or_key_is_in_any_line(
    call: tuple[str, dict[str, Any]],
    failure: Exception | None,
    tmp_path: Path,
    stream: io.StringIO,
    written: Callable[[], list[dict[str, Any]]],
) -> None:
    tenants = Tenants(tmp_path, {"acme": {}})
    tenants.engine.script = lambda job: Script([CANARY, "</think>", CANARY], failure=failure)
    logging.getLogger("gateway").setLevel("DEBUG")

    await tenants.post("acme", *call)

    assert written(), "something was logged"
    assert CANARY not in stream.getvalue()
    assert tenants.keys["acme"] not in stream.getvalue()


async def test_a_line_cannot_be_forged_through_id_or_path(
    text: Callable[[], list[dict[str, Any]]], stream: io.StringIO
) -> None:
    gateway = make_gateway(ScriptedEngine("first"))
    wire = Wire(f"/{FORGED}", headers=[(b"x-request-id", b"a\r\nforged")])

    await wire.through(gateway.app)

    (line,) = stream.getvalue().splitlines()
    assert "\\r\\n2026-11-24 ERROR" in line and not set(map(ord, line)) & set(CONTROLS)


async def test_a_person_reads_the_same_in_one_line(
    tmp_path: Path, stream: io.StringIO, text: Callable[[], list[dict[str, Any]]]
) -> None:
    tenants = Tenants(tmp_path, {"acme": {}})

    answer = await tenants.post("acme", "/generate", {"prompt": "x"})

    (line,) = stream.getvalue().splitlines()
    rid = answer.headers["x-request-id"]
    assert f" INFO gateway.access [{rid} acme]: POST /generate 200 ok model=first " in line
    assert " answer_tokens=2 " in line and " duration_s=" in line and "method=" not in line


@pytest.mark.parametrize("kind", ["json", "text"])
def test_a_record_is_one_line_whatever_is_in_it(kind: Kind, stream: io.StringIO) -> None:
    log = logging.Logger("any")
    log.addHandler(handler(kind, stream))

    log.warning("said %s", f"{FORGED}\ud800", extra={"field": FORGED})

    line = stream.getvalue().removesuffix("\n")
    assert line.splitlines() == [line] and "forged" in line
    assert kind == "text" or json.loads(line)["field"] == FORGED


def test_the_lines_of_an_exception_are_set_off(stream: io.StringIO) -> None:
    log = logging.Logger("any")
    log.addHandler(handler("text", stream))

    log.error("failed", exc_info=ValueError(FORGED))

    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("ERROR any: failed")
    assert all(line.startswith("    | ") for line in rest) and "forged" in rest[-1]


async def test_what_a_request_leaves_running_has_no_ids(
    written: Callable[[], list[dict[str, Any]]],
) -> None:
    gateway = make_gateway(speaking("ok"))
    later: list[Callable[[], None]] = []

    def observed(job: Any) -> Script:
        context = contextvars.copy_context()
        later.append(lambda: context.run(logging.getLogger("gateway").info, "later"))
        return Script()

    gateway.engines[0].script = observed
    await gateway.client.post("/generate", json={"prompt": "x"})

    later[0]()

    assert written()[-1]["message"] == "later" and "request_id" not in written()[-1]


async def test_the_level_changes_while_it_runs(
    written: Callable[[], list[dict[str, Any]]],
) -> None:
    gateway = make_gateway(ScriptedEngine("first"))
    admin = client_of(make_admin(gateway))

    for level, lines in (("ERROR", 0), ("INFO", 1), ("DEBUG", 2)):
        answer = await admin.put("/admin/log_level", json={"level": level})
        count = len(written())
        await gateway.client.post("/generate", json={"prompt": "x"})
        await gateway.client.get("/health/live")

        assert answer.json() == {"level": level} and gateway.settings.log_level == level
        assert len(written()) - count == lines, level

    refused = await admin.put("/admin/log_level", json={"level": "LOUD"})
    assert refused.status_code == 400 and gateway.settings.log_level == "DEBUG"


@pytest.fixture
def logging_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `configure` changes in the process is put back."""
    monkeypatch.setenv(logs.VLLM_CONFIG, "the operator's own")
    root = logging.getLogger()
    handlers, names = root.handlers[:], ("", *logs.OURS)
    levels = [logging.getLogger(name).level for name in names]
    yield
    root.handlers[:] = handlers
    for name, level in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(False)


@pytest.mark.usefixtures("logging_kept")
def test_libraries_stay_at_warning_whatever_our_level() -> None:
    """At DEBUG some of them tell what they send, and that may be a prompt."""
    logs.configure(make_settings(log_level="DEBUG"))

    levels = [logging.getLogger(name).getEffectiveLevel() for name in ("httpx", "gateway.asgi")]
    assert levels == [logging.WARNING, logging.DEBUG]
    assert os.environ[logs.VLLM_CONFIG] == "the operator's own"


@pytest.mark.usefixtures("logging_kept")
@pytest.mark.parametrize("kind", ["json", "text"])
def test_vllm_gets_the_file_of_that_format(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(logs.VLLM_CONFIG)

    logs.configure(make_settings(log_format=kind))

    assert json.loads(Path(os.environ[logs.VLLM_CONFIG]).read_text())["handlers"]["gateway"] == {
        "()": f"{engine_handler.__module__}.{engine_handler.__name__}",
        "kind": kind,
    }


def test_a_stream_that_is_no_terminal_gets_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())

    assert logs.kind_of(make_settings()) == "json"
