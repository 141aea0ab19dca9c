"""An engine that follows a script, and gateways over such engines.

The service tests drive the real engine. This one is for the edges in time that a real engine cannot hit
on demand: death in the answer's phase, a hang-up between two tokens, sixteen jobs inside at once.
"""

import asyncio
import itertools
import json
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from engine_config.profile import FolderModel, Profile
from gateway.app import create_admin_app, create_app
from gateway.engines.catalogue import Catalogue
from gateway.engines.fleet import Fleet
from gateway.engines.served import ServedModel
from gateway.engines.slot import Facts, Slot
from gateway.engines.switch import Tools
from gateway.engines.switcher import Switcher
from gateway.engines.types import Delta, Job, Limits, TokenIds
from gateway.errors import InvalidRequest, ModelNotFound
from gateway.observability.figures import Figures
from gateway.reload import Reloader
from gateway.settings import Settings
from gateway.tenancy import Tenancy
from gateway.thinking.dialect import Dialect
from tests.drawn import drawing

PATIENCE_S = 60  # a bound for tests that would hang; nothing is measured with it


# Each mark of a thought is one token, as in Qwen3's vocabulary: a character nobody uses.
MARKS = {"<think>": "\ue000", "</think>": "\ue001", "<tool_call>": "\ue002"}
VOCABULARY = 0xE003


def tokens(text: str) -> TokenIds:
    """One token per character and per mark; reversible by `text_of`."""
    for mark, character in MARKS.items():
        text = text.replace(mark, character)
    return tuple(map(ord, text))


def text_of(ids: Sequence[int]) -> str:
    text = "".join(map(chr, ids))
    for mark, character in MARKS.items():
        text = text.replace(character, mark)
    return text


def octets(text: str) -> TokenIds:
    """One token per UTF-8 byte and per mark, so that a cut can tear a character apart."""
    parts = re.split(f"({'|'.join(MARKS)})", text)
    marks = {mark: 256 + number for number, mark in enumerate(MARKS)}
    return tuple(
        token
        for part in parts
        for token in ([marks[part]] if part in marks else part.encode("utf-8", "replace"))
    )


def text_of_octets(ids: Sequence[int]) -> str:
    marks = {256 + number: mark.encode() for number, mark in enumerate(MARKS)}
    return b"".join(marks.get(token, bytes([token % 256])) for token in ids).decode(
        errors="replace"
    )


KNOWS_MARKS = Dialect(tokens, text_of, VOCABULARY)
# A vocabulary that knows no marks.
PLAIN_TEXT = Dialect(lambda text: tuple(map(ord, text)), lambda ids: "".join(map(chr, ids)), 0xD800)
OCTETS = Dialect(octets, text_of_octets, 259)
DIALECTS = {"marks are tokens": KNOWS_MARKS, "marks are text": PLAIN_TEXT, "bytes": OCTETS}


@dataclass
class Entry:
    """A candidate of a log-probability row, as vLLM's `Logprob`."""

    logprob: float
    rank: int = 1
    decoded_token: str | None = None


@dataclass
class Script:
    """What one job is answered with: a delta per text, the last one with the finish reason."""

    texts: Sequence[str] = ("ok",)
    ids: Sequence[TokenIds] | None = None  # the tokens of each text; None: its encoding
    logprobs: Sequence[Mapping[int, Entry]] | None = None  # a row per token of the whole
    finish: str = "stop"
    stop_reason: int | str | None = None
    tail: Sequence[int] = ()  # tokens without text at the end: an EOS, a stop string
    cached: int = 0
    failure: Exception | None = None  # raised before delta `fail_at`
    fail_at: int = 0
    gate: asyncio.Event | None = None  # waited for before delta `gate_at`
    gate_at: int = 0

    def tokens(self, dialect: Dialect, step: int) -> TokenIds:
        return dialect.encode(self.texts[step]) if self.ids is None else self.ids[step]


class ScriptedEngine:
    """Keeps `gateway.engines.types.Engine`. `script` says what each job gets."""

    def __init__(
        self, name: str = "scripted", context: int = 4096, dialect: Dialect = KNOWS_MARKS
    ) -> None:
        self.name = name
        self.dialect = dialect
        self.thinks = True
        self.loops = False  # what `looping` says
        self.script: Callable[[Job], Script] = lambda job: Script()
        self.opens_thought = False  # as a template that ends in <think> does
        self.limits = Limits(max_model_len=context, max_num_seqs=16, max_batched_tokens=2048)
        self.device, self.format = "cpu", "bfloat16"
        self.free = 2**40  # bytes
        self.weights: list[Path] = []  # that were put in place
        self.adapters: dict[str, Path] = {}
        self.reload_failures: list[Exception] = []  # raised by the next `reload_weights`
        self.reload_gate: asyncio.Event | None = None  # waited for where none is raised
        self.registry = CollectorRegistry()
        labels = ("model_name",)
        counted = Counter("vllm:prompt_tokens", "As vLLM has it.", labels, registry=self.registry)
        self.prompt_tokens = counted.labels(name)
        self.app: ASGIApp = Starlette(routes=[Route("/{path:path}", self._openai, methods=METHODS)])
        self.bodies: list[bytes] = []  # that reached `app`
        self.contexts: list[str] = []  # trace contexts that did
        self.jobs: list[Job] = []
        self.grammars: list[Mapping[str, Any]] = []  # that were to be tried
        self.running: set[str] = set()
        self.aborted: list[str] = []  # request ids of generators closed early, clean-up done
        self.crowd, self.crowded = 1, asyncio.Event()  # `crowd` jobs are inside at once
        self.is_dead = False
        self.silence_s = 0.0
        self.stepped: Callable[[], None] = lambda: None
        self.kills = self.closes = 0

    async def render_text(self, text: str) -> TokenIds:
        if len(text) > self.limits.max_model_len:
            raise InvalidRequest("the prompt is longer than the context", "prompt")
        return tokens(text)

    async def render_chat(
        self, messages: Sequence[Mapping[str, Any]], thinking: bool = False
    ) -> TokenIds:
        turns = "".join(f"<{message['role']}>{message['content']}" for message in messages)
        opening = "<think>\n" if self.opens_thought else ""
        return self.dialect.encode(f"{turns}<assistant>{opening}")

    def looping(self, ids: Sequence[int]) -> bool:
        return self.loops

    async def generate(self, job: Job) -> AsyncGenerator[Delta, None]:
        script = self.script(job)
        drawn = drawing(len(job.prompt), script.cached, name=job.request_id)
        self.jobs.append(job)
        self.running.add(job.request_id)
        if len(self.running) >= self.crowd:
            self.crowded.set()
        try:
            for step in range(len(script.texts)):
                await _before(step, script)
                drawn.draw(len(script.tokens(self.dialect, step)) * job.sampling.get("n", 1))
                self.stepped()
                for index in range(job.sampling.get("n", 1) if job.stream else 0):
                    yield self._delta(script, range(step, step + 1), index)
            await _before(len(script.texts), script)
            for index in range(0 if job.stream else job.sampling.get("n", 1)):
                yield self._delta(script, range(len(script.texts)), index)
        except (GeneratorExit, asyncio.CancelledError):
            await asyncio.sleep(0)  # vLLM's abort awaits too: a second cancel would lose it
            self.aborted.append(job.request_id)
            raise
        finally:
            self.running.discard(job.request_id)

    def _delta(self, script: Script, steps: range, index: int) -> Delta:
        last = steps.stop == len(script.texts)
        ids = [token for step in steps for token in script.tokens(self.dialect, step)]
        done = 0
        if script.logprobs is not None:
            done = sum(len(script.tokens(self.dialect, step)) for step in range(steps.start))
        ids.extend(script.tail if last else ())
        return Delta(
            index=index,
            text="".join(script.texts[steps.start : steps.stop]),
            token_ids=ids,
            finish_reason=script.finish if last else None,
            stop_reason=script.stop_reason if last else None,
            cached_tokens=script.cached,
            logprobs=script.logprobs and script.logprobs[done : done + len(ids)],
        )

    async def check_grammar(self, specs: Sequence[Mapping[str, Any]], limit_s: float) -> None:
        self.grammars.extend(specs)

    async def model_card(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "root": self.name}

    def dead(self) -> bool:
        return self.is_dead

    def unfinished(self) -> int:
        return len(self.running)

    def silent_s(self) -> float:
        return self.silence_s

    def watch_steps(self, tell: Callable[[], None]) -> None:
        self.stepped = tell

    def kill(self) -> None:
        self.kills += 1
        self.is_dead = True

    def free_memory(self) -> int:
        return self.free

    async def reload_weights(self, location: Path) -> None:
        if self.reload_failures:
            raise self.reload_failures.pop(0)
        if self.reload_gate is not None:
            await self.reload_gate.wait()
        self.weights.append(location)

    async def load_adapter(self, name: str, path: Path) -> None:
        self.adapters[name] = path

    async def unload_adapter(self, name: str) -> None:
        del self.adapters[name]

    def has_adapter(self, name: str) -> bool:
        return name in self.adapters

    def adapted(self, name: str) -> "ScriptedEngine":
        if name not in self.adapters:
            raise ModelNotFound(f"adapter '{name}' is not loaded", "model")
        return self

    async def aclose(self) -> None:
        self.closes += 1

    async def _openai(self, request: Request) -> Response:
        """Echoes; `x-scripted: stream|error|boom|wait` asks for something else."""
        body = await request.body()
        self.bodies.append(body)
        self.contexts.append(request.headers.get("traceparent", ""))
        drawing(*OPENAI_COST)
        wanted = request.headers.get("x-scripted")
        if wanted == "stream":
            return StreamingResponse(_frames(), media_type="text/event-stream")
        if wanted == "error":
            return JSONResponse(engine_error(request.url.path), 422)
        if wanted == "boom":
            raise RuntimeError("secret detail")
        return JSONResponse({"engine": self.name, "path": request.url.path})


def said(
    dialect: Dialect, ids: TokenIds, sizes: Iterable[int] = itertools.repeat(1), **more: Any
) -> Script:
    """A script that speaks these tokens in deltas of these sizes; half a character has no text yet."""
    groups: list[TokenIds] = []
    texts: list[str] = []
    rest = iter(ids)
    for size in sizes:
        if not (group := tuple(itertools.islice(rest, size))):
            break
        groups.append(group)
        so_far = dialect.decode([token for group in groups for token in group]).rstrip("\ufffd")
        texts.append(so_far[sum(map(len, texts)) :])
    return Script(texts, groups, **more)


METHODS = ["GET", "POST"]
OPENAI_COST = (7, 2, 3)  # prompt, cached, output: what each call of `app` draws


async def _before(step: int, script: Script) -> None:
    if script.gate is not None and step == script.gate_at:
        await script.gate.wait()
    if script.failure is not None and step == script.fail_at:
        raise script.failure


async def _frames() -> AsyncIterator[bytes]:
    for number in range(3):
        yield b"data: %d\n\n" % number


def engine_error(path: str) -> dict[str, Any]:
    """vLLM's error body on this path, without a request id."""
    told = {"message": "no", "type": "BadRequestError", "param": None, "code": 422}
    return {"type": "error", "error": told} if path == "/v1/messages" else {"error": told}


QUIET = {"_env_file": None, "usage_url": "off", "audit_log": "off"}


def make_settings(**values: Any) -> Settings:
    """Settings that no environment and no .env file has touched."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("GATEWAY_")]:
            patch.delenv(name)
        patch.chdir(Path(__file__).parent)  # where no .env is
        return Settings(**{**QUIET, **values})


def make_profile(served_as: str) -> Profile:
    model = FolderModel(kind="folder", path=Path("nowhere"))
    return Profile(name=served_as, title="Scripted.", served_as=served_as, model=model)


@dataclass
class Gateway:
    """The public app over scripted engines, and what it is made of."""

    engines: tuple[ScriptedEngine, ...]
    settings: Settings
    fleet: Fleet
    figures: Figures
    tenancy: Tenancy
    app: FastAPI
    client: httpx.AsyncClient

    @property
    def model(self) -> ServedModel:
        return next(iter(self.fleet.models.values()))


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


def make_gateway(*engines: ScriptedEngine, **values: Any) -> Gateway:
    settings = make_settings(**values)
    models = [_served(engine, settings) for engine in engines]
    fleet, figures = Fleet(models, settings), Figures(settings.metrics_tenants)
    tenancy = Tenancy.of(settings, figures.registry)
    app = create_app(settings, fleet, figures, tenancy)
    return Gateway(engines, settings, fleet, figures, tenancy, app, client_of(app))


def make_admin(gateway: Gateway, *profiles: Profile) -> FastAPI:
    """The admin app; its models may be switched to these profiles, which nothing needs."""
    catalogue = Catalogue(gateway.settings)
    catalogue.adopt({profile.name: profile for profile in profiles}, {})
    tools = Tools(
        locate=lambda profile, tell: Path("nowhere"),
        footprint=lambda profile, where: 1,
        check=lambda profile, where: None,
    )
    switcher = Switcher(gateway.fleet, catalogue, tools)
    reloader = Reloader(gateway.settings, gateway.fleet, catalogue, gateway.tenancy.keyring)
    return create_admin_app(gateway.fleet, gateway.figures, switcher, reloader, gateway.tenancy)


def make_app(engine: ScriptedEngine, **values: Any) -> httpx.AsyncClient:
    return make_gateway(engine, **values).client


def _served(engine: ScriptedEngine, settings: Settings) -> ServedModel:
    async def opener(
        profile: Profile, location: Path | str, cores: str | None = None
    ) -> ScriptedEngine:
        return engine

    model = ServedModel(make_profile(engine.name), "nowhere", opener, settings)
    model.publish(slot_of(engine, model.profile))
    model.built = 1
    return model


def slot_of(engine: ScriptedEngine, profile: Profile, location: Path | str = "nowhere") -> Slot:
    card = {"id": engine.name, "object": "model", "root": engine.name}
    return Slot(engine, profile, location, Facts("0" * 64, None), card)


def events_of(text: str) -> list[dict[str, Any]]:
    """The data of each server-sent event, `[DONE]` left out."""
    data = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in data if line != "[DONE]"]
