"""What binds the answer's form: JSON schemas, regular expressions, choices and grammars of a request.

Two gates before the engine. Here: counts and sizes, which cost nothing to check. Then the engine's
`check_grammar`: what is left must compile within a limit of processor time. docs/security.md says why both.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import orjson

from gateway.errors import InvalidRequest
from gateway.settings import Settings

Spec = dict[str, Any]  # one of vLLM's kinds: json, regex, choice, grammar, structural_tag
KINDS = ("json", "regex", "choice", "grammar", "structural_tag")
NO_TOOLS = ("none", {"type": "none"})
# Keywords whose value is a schema for each of its names.
NAMED = ("properties", "$defs", "definitions", "dependentSchemas")
# Keywords whose value is data, not a schema.
DATA = ("enum", "const", "default", "examples")
INDEX = re.compile(
    "[0-9]{1,9}"
)  # of a list, in a pointer; Python refuses to read thousands of digits


def specs(request: Mapping[str, Any]) -> list[Spec]:
    """Every grammar that vLLM could make of the body, in its own names; empty for most requests."""
    found = [*_of_format(request.get("response_format"))]
    for outer in ("text", "output_config"):  # Responses and Messages have it one level deeper
        found += _of_format(_dict(request.get(outer)).get("format"))
    given = _dict(request.get("structured_outputs"))
    found += [{kind: given[kind]} for kind in KINDS if given.get(kind) is not None]
    schemas = [] if request.get("tool_choice") in NO_TOOLS else _of_tools(request)
    return [*found, *(_tag({"type": "json_schema", "json_schema": each}) for each in schemas)]


def _tag(form: Any) -> Spec:
    """vLLM binds tool calls by a structural tag, which is looser than a schema: what it does not know of
    a tool's schema it leaves out, where a `response_format` would be refused."""
    return {"structural_tag": _dumped({"type": "structural_tag", "format": form}).decode()}


def _of_format(told: object) -> Iterator[Spec]:
    """OpenAI's `response_format` or `text.format`, Anthropic's `output_config.format`."""
    form = _dict(told)
    if form.get("type") == "structural_tag":
        yield {"structural_tag": _dumped(form).decode()}
    schema = _dict(form.get("json_schema")).get("schema", form.get("schema"))
    if isinstance(schema, dict):
        yield {"json": schema}


def _of_tools(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    tools = request.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        whole = _dict(tool)
        inner = _dict(whole.get("function")) or whole
        for name in ("parameters", "input_schema"):
            if isinstance(inner.get(name), dict) and inner[name]:
                yield inner[name]


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def check(found: list[Spec], settings: Settings) -> None:
    """Refuse what is too large to be tried.

    Raises:
        InvalidRequest: naming the limit, its setting and the value.
    """
    for spec in found:
        (kind, value), *_ = spec.items()
        if kind in ("json", "structural_tag") and isinstance(value, str):
            value = _parsed(kind, value)
        _within("bytes", len(_dumped(value)), settings.max_schema_bytes, "max_schema_bytes")
        if kind == "regex":
            _check_regex(value, settings)
        elif kind == "choice":
            count = len(value) if isinstance(value, list) else 0
            _within("choices", count, settings.max_schema_enum, "max_schema_enum")
        elif kind != "grammar":
            Count(settings).all(value)
            _check_references(_root(kind, value))


def _dumped(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError as error:  # an integer of more than 64 bits
        raise InvalidRequest(
            f"the schema, regex or grammar cannot be written as JSON: {error}"
        ) from error


def _parsed(kind: str, text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"structured_outputs.{kind} is not valid JSON: {error}") from error


def _root(kind: str, value: Any) -> Any:
    """The schema that references begin at; a structural tag of another kind has several, or none."""
    return value if kind == "json" else _dict(_dict(value).get("format")).get("json_schema")


def _within(what: str, given: int, limit: int, setting: str) -> None:
    if given > limit:
        raise InvalidRequest(
            f"the schema, regex or grammar has {given} {what}; the limit is {limit} "
            f"(setting GATEWAY_{setting.upper()})"
        )


def _check_regex(pattern: object, settings: Settings) -> None:
    if isinstance(pattern, str):
        _within(
            "characters of a pattern", len(pattern), settings.max_regex_chars, "max_regex_chars"
        )


class Count:
    """Of a schema: properties, patterns and enum entries, over all its levels together."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.properties = self.patterns = self.entries = 0

    def all(self, schema: object) -> None:
        """The body is bounded in size and depth already, so this is too."""
        waiting = [schema]
        while waiting:
            place = waiting.pop()
            if isinstance(place, dict):
                self.one(place)
                waiting += place.values()
            elif isinstance(place, list):
                waiting += place
        limits = self.settings
        _within(
            "properties", self.properties, limits.max_schema_properties, "max_schema_properties"
        )
        _within("patterns", self.patterns, limits.max_schema_patterns, "max_schema_patterns")
        _within("enum entries", self.entries, limits.max_schema_enum, "max_schema_enum")

    def one(self, place: dict[str, Any]) -> None:
        patterns = [*_dict(place.get("patternProperties"))]
        if isinstance(pattern := place.get("pattern"), str):
            patterns.append(pattern)
        for each in patterns:
            _check_regex(each, self.settings)
        self.patterns += len(patterns)
        self.properties += sum(len(_dict(place.get(name))) for name in NAMED)
        if isinstance(enum := place.get("enum"), list):
            self.entries += len(enum)


def _check_references(root: object) -> None:
    """Each `$ref` must lead to a schema of this document, and not only in circles.

    A tree that refers to itself below a property is fine; a reference that is nothing but a reference to
    itself says nothing, and compilers answer it with a grammar that nothing matches. Each reference is
    resolved once, however many lead to it: the work is linear in the schema's size.
    """
    good: set[int] = set()  # by `id`: the places live as long as the root
    waiting = [root]
    while waiting:
        place = waiting.pop()
        if isinstance(place, list):
            waiting += place
        elif isinstance(place, dict):
            waiting += [value for name, value in place.items() if name not in DATA]
            _follow(root, place, good)


def _follow(root: object, place: dict[str, Any], good: set[int]) -> None:
    passed: set[int] = set()
    target: Any = place
    while isinstance(target, dict) and isinstance(name := target.get("$ref"), str):
        if id(target) in good:
            break
        if id(target) in passed:
            raise InvalidRequest(f"the schema's $ref {name[:80]!r} refers only to itself")
        passed.add(id(target))
        target = _at(root, name)
    good |= passed


def _at(root: object, name: str) -> Any:
    """The place of a JSON pointer in a fragment (RFC 6901, section 6: percent-encoded)."""
    place: Any = root
    if not name.startswith("#"):
        raise InvalidRequest(f"the schema's $ref {name[:80]!r} leads elsewhere; nothing is fetched")
    for part in filter(None, unquote(name[1:]).split("/")):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and INDEX.fullmatch(key) and int(key) < len(place):
            place = place[int(key)]
        elif isinstance(place, dict) and key in place:
            place = place[key]
        else:
            raise InvalidRequest(f"the schema's $ref {name[:80]!r} leads nowhere")
    return place
