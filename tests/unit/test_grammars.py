"""What binds an answer's form: found wherever a route takes it, counted, and tried before the engine."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from gateway.errors import EngineUnavailable, InvalidRequest
from gateway.policy.grammars import check, specs
from gateway.routes.binding import Binding
from tests.scripted import Gateway, ScriptedEngine, make_gateway, make_settings, slot_of

SETTINGS = make_settings(
    max_schema_bytes=2000,
    max_schema_properties=4,
    max_schema_enum=3,
    max_schema_patterns=2,
    max_regex_chars=10,
)
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
NAMED = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
FLAT = {"type": "json_schema", "schema": SCHEMA}
TAG = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": SCHEMA}}


@pytest.mark.parametrize(
    ("request_body", "kinds"),
    [
        ({"response_format": NAMED}, ["json"]),
        ({"response_format": {"type": "json_object"}}, []),
        ({"response_format": {"type": "text"}}, []),
        ({"response_format": TAG}, ["structural_tag"]),
        ({"text": {"format": FLAT}}, ["json"]),
        ({"output_config": {"format": FLAT}}, ["json"]),
        ({"structured_outputs": {"regex": "a+"}}, ["regex"]),
        ({"structured_outputs": {"choice": ["a"], "grammar": "root ::= x"}}, ["choice", "grammar"]),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]},
            ["structural_tag"],
        ),
        ({"tools": [{"name": "f", "input_schema": SCHEMA}]}, ["structural_tag"]),
        ({"tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]}, ["structural_tag"]),
        ({"tools": [{"name": "f", "input_schema": SCHEMA}], "tool_choice": "none"}, []),
        ({"response_format": 5, "text": "t", "tools": [5], "structured_outputs": []}, []),
        ({"messages": []}, []),
    ],
    ids=str,
)
def test_grammars_are_found_where_each_route_has_them(
    request_body: dict[str, Any], kinds: list[str]
) -> None:
    assert [kind for spec in specs(request_body) for kind in spec] == kinds


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "json_schema": {"schema": {"type": "integer", "maximum": 2**70}}},
        {**TAG, "format": {"type": "const_string", "value": 2**70}},
    ],
    ids=["schema", "tag"],
)
async def test_an_integer_that_is_too_large_for_json_is_the_callers_mistake(
    form: dict[str, Any],
) -> None:
    gateway = make_gateway(ScriptedEngine("first"))

    answer = await gateway.client.post(
        "/thinking", json={"question": "Hi", "response_format": form}
    )

    assert answer.status_code == 400
    assert "64-bit" in answer.json()["detail"]


def strings(count: int, **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {f"p{i}": {"type": "string", **more} for i in range(count)},
    }


@pytest.mark.parametrize(
    ("spec", "setting"),
    [
        ({"json": strings(5)}, "MAX_SCHEMA_PROPERTIES"),
        ({"json": {"type": "array", "items": strings(5)}}, "MAX_SCHEMA_PROPERTIES"),
        ({"json": {"$defs": {str(i): {} for i in range(5)}}}, "MAX_SCHEMA_PROPERTIES"),
        ({"json": {"anyOf": [{"enum": [1, 2]}, {"enum": [3, 4]}]}}, "MAX_SCHEMA_ENUM"),
        ({"choice": ["a"] * 4}, "MAX_SCHEMA_ENUM"),
        ({"json": strings(3, pattern="a")}, "MAX_SCHEMA_PATTERNS"),
        ({"json": {"patternProperties": {"a": {}, "b": {}, "c": {}}}}, "MAX_SCHEMA_PATTERNS"),
        ({"json": strings(1, pattern="a" * 11)}, "MAX_REGEX_CHARS"),
        ({"regex": "a" * 11}, "MAX_REGEX_CHARS"),
        ({"json": {"description": "x" * 3000}}, "MAX_SCHEMA_BYTES"),
        ({"grammar": "x" * 3000}, "MAX_SCHEMA_BYTES"),
        (
            {"structural_tag": '{"format": {"json_schema": {"enum": [1, 2, 3, 4]}}}'},
            "MAX_SCHEMA_ENUM",
        ),
    ],
    ids=str,
)
def test_what_is_too_large_names_its_limit(spec: dict[str, Any], setting: str) -> None:
    with pytest.raises(InvalidRequest, match=f"the limit is .*GATEWAY_{setting}"):
        check([spec], SETTINGS)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"properties": {"a": {"$ref": "#/properties/a"}}},
        {"$ref": "#/$defs/nowhere"},
        {"$ref": "#/0"},
        {"$ref": "http://127.0.0.1/x"},
        {"$ref": "file:///etc/passwd"},
        {"$defs": {"a b": {"$ref": "#/$defs/a%20b"}}},
    ],
    ids=str,
)
def test_a_reference_leads_to_a_schema_of_the_same_document(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"\$ref"):
        check([{"json": schema}], SETTINGS)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"c": {"type": "array", "items": {"$ref": "#"}}}},
        {"$defs": {"a~/b": {"type": "string"}}, "$ref": "#/$defs/a~0~1b"},
        {"$defs": {"a b%": {"type": "string"}}, "$ref": "#/%24defs/a%20b%25"},
        {"anyOf": [{"type": "string"}, {"$ref": "#/anyOf/0"}]},
        {"properties": {"$ref": {"type": "string"}}},
        {"enum": [{"$ref": "#/nowhere"}]},
    ],
    ids=str,
)
def test_a_schema_may_refer_to_its_own_parts(schema: dict[str, Any]) -> None:
    check([{"json": schema}], SETTINGS)


def test_an_index_of_thousands_of_digits_leads_nowhere() -> None:
    with pytest.raises(InvalidRequest, match="leads nowhere"):
        check([{"json": {"anyOf": [{"$ref": "#/anyOf/" + "9" * 5000}]}}], make_settings())


class Counted(dict[str, Any]):
    """Counts how often a name is looked up in it."""

    lookups = 0

    def __getitem__(self, name: str) -> Any:
        self.lookups += 1
        return super().__getitem__(name)


@pytest.mark.parametrize("backwards", [False, True])
def test_each_link_of_a_long_chain_of_references_is_followed_once(backwards: bool) -> None:
    links = [(str(i), {"$ref": f"#/$defs/{i + 1}"}) for i in range(3500)]
    definitions = Counted([*(links[::-1] if backwards else links), ("3500", {"type": "string"})])

    check([{"json": {"$defs": definitions, "$ref": "#/$defs/0"}}], make_settings())

    assert definitions.lookups == 3501


def test_a_tools_references_begin_at_its_own_schema() -> None:
    parameters = {"$defs": {"x": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/x"}}}

    check(specs({"tools": [{"name": "f", "input_schema": parameters}]}), SETTINGS)


def test_a_schema_in_a_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        check([{"json": "{"}], SETTINGS)


BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "Hi"}],
        "response_format": NAMED,
    },
    "/v1/completions": {"prompt": "Hi", "response_format": NAMED},
    "/v1/responses": {"input": "Hi", "text": {"format": FLAT}},
    "/v1/messages": {"messages": [], "max_tokens": 4, "output_config": {"format": FLAT}},
    "/thinking": {"question": "Hi", "response_format": NAMED},
}


@pytest.fixture
def gateway() -> Gateway:
    return make_gateway(ScriptedEngine())


@pytest.mark.parametrize("path", BODIES)
async def test_every_route_that_takes_a_schema_has_it_tried(gateway: Gateway, path: str) -> None:
    await gateway.client.post(path, json={"model": "scripted", **BODIES[path]})

    assert gateway.engines[0].grammars == [{"json": SCHEMA}]


@pytest.mark.parametrize("path", BODIES)
async def test_what_cannot_be_compiled_does_not_reach_the_engine(
    gateway: Gateway, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise InvalidRequest("too slow")

    engine = gateway.engines[0]
    monkeypatch.setattr(engine, "check_grammar", refuse)

    response = await gateway.client.post(path, json={"model": "scripted", **BODIES[path]})

    assert response.status_code == 400
    assert not engine.bodies and not engine.jobs


class Trying(ScriptedEngine):
    """Its checker never comes to a verdict."""

    def __init__(self) -> None:
        super().__init__()
        self.tried, self.given_up = asyncio.Event(), asyncio.Event()

    async def check_grammar(self, specs: Sequence[Mapping[str, Any]], limit_s: float) -> None:
        self.tried.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.given_up.set()


@pytest.mark.parametrize("path", BODIES)
async def test_a_grammar_that_is_tried_takes_no_place_and_heeds_the_deadline(path: str) -> None:
    engine = Trying()
    gateway = make_gateway(engine)
    headers = {"request-timeout-ms": "300"}
    body = {"model": "scripted", **BODIES[path]}
    call = asyncio.create_task(gateway.client.post(path, json=body, headers=headers))
    await engine.tried.wait()

    assert gateway.model.admission.running == 0
    assert gateway.fleet.in_flight() == 0
    assert (await call).json()["error" if path.startswith("/v1") else "status"]
    assert call.result().status_code == 504
    assert engine.given_up.is_set()


async def test_each_engine_that_may_serve_a_request_tries_its_grammars_once(
    gateway: Gateway,
) -> None:
    model, engine = gateway.model, gateway.engines[0]
    slot = model.slot
    assert slot is not None
    binding = Binding({"response_format": NAMED}, SETTINGS)

    model.gate.clear()  # being replaced: nobody to ask
    await binding.before(model)
    assert engine.grammars == []

    model.gate.set()
    await binding.before(model)
    await binding.tried_by(slot)
    assert engine.grammars == [{"json": SCHEMA}]

    successor = ScriptedEngine()
    await binding.tried_by(replace(slot, engine=successor))
    assert successor.grammars == [{"json": SCHEMA}]


class Ending(ScriptedEngine):
    """Its checker ends before it comes to a verdict."""

    def __init__(self) -> None:
        super().__init__()
        self.tried, self.ends = asyncio.Event(), asyncio.Event()

    async def check_grammar(self, specs: Sequence[Mapping[str, Any]], limit_s: float) -> None:
        self.tried.set()
        await self.ends.wait()
        raise EngineUnavailable("could not be tried now")


@pytest.mark.parametrize("path", BODIES)
async def test_a_switch_while_a_grammar_is_tried_fails_no_request(path: str) -> None:
    old, new = Ending(), ScriptedEngine()
    gateway = make_gateway(old)
    body = {"model": "scripted", **BODIES[path]}
    call = asyncio.create_task(gateway.client.post(path, json=body))
    await old.tried.wait()

    gateway.model.publish(slot_of(new, gateway.model.profile))
    old.ends.set()

    assert (await call).status_code == 200
    assert new.grammars == [{"json": SCHEMA}]


async def test_without_a_switch_it_is_told_that_it_cannot_be_tried() -> None:
    engine = Ending()
    engine.ends.set()

    answer = await make_gateway(engine).client.post(
        "/v1/completions", json=BODIES["/v1/completions"]
    )

    assert (answer.status_code, answer.json()["error"]["message"]) == (
        503,
        "could not be tried now",
    )
