"""Bodies that nobody means well with, for every route that takes one. Each gets a 4xx, and soon."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MODEL = "smollm2-135m"
HI = [{"role": "user", "content": "Hi"}]
# A good body per route. What follows spoils one thing in it.
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": HI, "max_tokens": 4},
    "/v1/completions": {"model": MODEL, "prompt": "Hi", "max_tokens": 4},
    "/v1/responses": {"model": MODEL, "input": "Hi", "max_output_tokens": 16},
    "/v1/messages": {"model": MODEL, "messages": HI, "max_tokens": 4},
    "/generate": {"model": MODEL, "prompt": "Hi", "max_tokens": 4},
    "/thinking": {"model": MODEL, "question": "Hi", "max_tokens": 48, "thinking_budget": 0},
    "/batch_generate": {"model": MODEL, "prompts": ["Hi"], "max_tokens": 4},
    "/v1/messages/count_tokens": {"model": MODEL, "messages": HI},
    "/tokenize": {"model": MODEL, "prompt": "Hi"},
    "/detokenize": {"model": MODEL, "tokens": [1, 2]},
}
# The field that holds what is asked, and the one that says how much may be answered.
ASKED = {
    **dict.fromkeys(
        ("/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"), "messages"
    ),
    **dict.fromkeys(("/v1/completions", "/generate", "/tokenize"), "prompt"),
    **{"/v1/responses": "input", "/thinking": "question", "/batch_generate": "prompts"},
    "/detokenize": "tokens",
}
COUNTING = ("/tokenize", "/detokenize", "/v1/messages/count_tokens")
DRAWING = [path for path in GOOD if path not in COUNTING]
NATIVE = ("/generate", "/thinking", "/batch_generate")
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Case:
    name: str
    path: str
    content: bytes
    headers: dict[str, str] = field(default_factory=lambda: JSON)

    def __str__(self) -> str:
        return f"{self.path} {self.name}"


def _texts(path: str) -> Iterator[tuple[str, bytes]]:
    """What is no JSON object of ours, whatever is in it."""
    good = json.dumps(GOOD[path]).encode()
    inside = good[:-1] + b', "extra": '
    yield "nothing", b""
    yield "truncated", good[:-5]
    yield "half a string", good[: good.index(b"Hi") + 1] if b"Hi" in good else b'{"a": "b'
    yield "twice", good + good
    yield "single quotes", good.replace(b'"', b"'")
    yield "a comment", b"/* hello */" + good
    yield "a list", b"[" + good + b"]"
    yield "null", b"null"
    yield "a number", b"7"
    yield "a BOM", b"\xef\xbb\xbf" + good
    yield "UTF-16", good.decode().encode("utf-16")
    yield "no UTF-8", inside + b'"\xff\xfe"}'
    yield "gzip undeclared", gzip.compress(good)
    yield "a NUL behind it", good + b"\0"
    yield "a NUL in a string", inside + b'"a\0b"}'
    yield "NaN", inside + b"NaN}"
    yield "Infinity", inside + b"-Infinity}"
    yield "a lone surrogate", inside + b'"\\ud800"}'
    yield "a surrogate pair turned round", inside + b'"\\udc00\\ud800"}'
    yield "deep lists", inside + b"[" * 100_000 + b"]" * 100_000 + b"}"
    yield "deep objects", inside + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}"
    yield "deep and open", inside + b"[" * 500_000
    yield "nested beyond the limit", inside + b"[" * 80 + b"]" * 80 + b"}"


def _declared(path: str) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    good = json.dumps(GOOD[path]).encode()
    yield "gzip", gzip.compress(good), JSON | {"content-encoding": "gzip"}
    yield "a bomb", gzip.compress(bytes(50_000_000)), JSON | {"content-encoding": "gzip"}
    yield "another encoding", good, JSON | {"content-encoding": "identity, br"}
    yield "a form", good, {"content-type": "application/x-www-form-urlencoded"}
    yield "multipart", good, {"content-type": "multipart/form-data; boundary=x"}
    yield "text", good, {"content-type": "text/plain"}
    yield "no type", good, {"content-type": ""}


def _fields(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """One field with a value that it cannot have."""
    asked = ASKED[path]
    for name, value in WRONG_INPUTS.items():
        yield f"{asked} is {name}", {asked: value}
    for value in (5, {}, [], True, "nobody", "x" * 10_000):
        yield f"model is {str(value)[:10]}", {"model": value}
    if path not in DRAWING:
        return
    longest = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    for value in (-1, "many", [], {}, 10**12, 1e30, 1.5):
        yield f"{longest} is {value}", {longest: value}
    yield "temperature is a word", {"temperature": "hot"}
    yield "temperature is cold", {"temperature": -1}
    yield "temperature is huge", {"temperature": 1e300}
    yield "top_p is 2", {"top_p": 2}
    yield "top_p is 0", {"top_p": 0}
    yield "stream is a word", {"stream": "maybe"}
    if stop := _stop(path):
        yield f"{stop} is endless", {stop: ["a"] * 100_000}
    if path in NATIVE:
        yield "an unknown field", {"what_is_this": 1}
        yield "a seed beyond 64 bits", {"seed": 2**70}
        yield "a wrong priority", {"priority": 10**6}


def _stop(path: str) -> str | None:
    return {"/v1/messages": "stop_sequences", "/v1/responses": None}.get(path, "stop")


WRONG_INPUTS: dict[str, Any] = {
    "null": None,
    "a number": 5,
    "a truth": True,
    "an object": {"a": 1},
    "a list of nulls": [None],
    "a list of lists of lists": [[[1]]],
    "a list of objects": [{"a": {"b": "c"}}],
    "100,000 numbers": [-1] * 100_000,
    "100,000 empty objects": [{}] * 100_000,
    # About as many as a body of 4 MiB holds.
    "a million numbers": [-1] * 1_000_000,
    "a million empty objects": [{}] * 1_000_000,
    "a number and a million empty objects": [1] + [{}] * 1_000_000,
    "a list of a million empty objects": [[{}] * 1_000_000],
}
CHAT = "/v1/chat/completions"
# What vLLM itself looks at when the first token is asked for; a stream has begun by then.
LATE: dict[str, Any] = {
    "logit_bias": {"99999999": 1},
    "stop_token_ids": [99_999_999],
    "allowed_token_ids": [99_999_999],
}
OPENAI: list[tuple[str, str, dict[str, Any]]] = [
    ("n: 5000", CHAT, {"n": 5000}),
    ("structured_outputs: a list", CHAT, {"structured_outputs": [{}]}),
    ("structured_outputs: a text", "/v1/completions", {"structured_outputs": "json"}),
    ("stop: a million", "/generate", {"stop": [0] * 1_000_000}),
    (
        "previous_input_messages: a million",
        "/v1/responses",
        {"previous_input_messages": [0] * 1_000_000},
    ),
    ("n: 5000", "/v1/completions", {"n": 5000}),
    ("n: 5000", "/generate", {"n": 5000}),
    ("samples: 5000", "/thinking", {"samples": 5000}),
    ("n as a text", CHAT, {"n": "5000"}),
    ("n: -3", CHAT, {"n": -3}),
    ("best_of: 5000", "/v1/completions", {"best_of": 5000}),
    ("top_logprobs: 10^9", CHAT, {"logprobs": True, "top_logprobs": 10**9}),
    ("logprobs: 10^9", "/v1/completions", {"logprobs": 10**9}),
    ("prompt_logprobs: 10^9", CHAT, {"prompt_logprobs": 10**9}),
    ("a seed beyond 64 bits", CHAT, {"seed": 2**70}),
    ("a priority beyond 64 bits", CHAT, {"priority": 10**30}),
    ("top_k beyond 64 bits", CHAT, {"top_k": 2**70}),
    ("repetition_penalty: 1e308", CHAT, {"repetition_penalty": 1e308}),
    ("min_tokens beyond max_tokens", CHAT, {"min_tokens": 100}),
    ("logit_bias of 100,000", CHAT, {"logit_bias": {str(i): 1 for i in range(100_000)}}),
    ("logit_bias of a word", CHAT, {"logit_bias": {"word": 1}}),
    ("logit_bias beyond the vocabulary", CHAT, {"logit_bias": {"99999999": 1}}),
    ("stop_token_ids beyond 64 bits", CHAT, {"stop_token_ids": [2**70]}),
    ("allowed_token_ids below zero", CHAT, {"allowed_token_ids": [-5]}),
    ("a stop string of 100,000", CHAT, {"stop": ["x" * 100_000]}),
    ("bad_words of 100,000", CHAT, {"bad_words": ["a"] * 100_000}),
    ("metadata of 100 pairs", "/v1/responses", {"metadata": {str(i): "x" for i in range(100)}}),
    ("tools are a text", CHAT, {"tools": "f"}),
    ("tools are numbers", CHAT, {"tools": [5]}),
    ("1,000 tools", CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}] * 1000}),
    ("a user of 100,000", CHAT, {"user": "x" * 100_000}),
    ("token ids below zero", "/v1/completions", {"prompt": [-5]}),
    ("token ids beyond 64 bits", "/v1/completions", {"prompt": [2**70]}),
    ("token ids beyond 64 bits", "/detokenize", {"tokens": [2**70]}),
    ("a prompt of 3 MB", "/v1/completions", {"prompt": "word " * 600_000}),
    ("a prompt of 3 MB", "/generate", {"prompt": "word " * 600_000}),
    ("a prompt of 3 MB", CHAT, {"messages": [{"role": "user", "content": "word " * 600_000}]}),
    ("a role of nobody", CHAT, {"messages": [{"role": "", "content": 5}]}),
    ("1,000 prompts", "/batch_generate", {"prompts": ["a"] * 1000}),
    ("both inputs", "/generate", {"messages": HI}),
    ("both inputs", "/thinking", {"messages": HI}),
    ("a template", CHAT, {"chat_template": "{{ 7 }}"}),
    ("template arguments", CHAT, {"chat_template_kwargs": {"tokenize": True}}),
    ("an empty stop string", "/v1/messages", {"stop_sequences": [""]}),
    *(
        (f"{field} of no token, streamed", path, {field: given, "stream": True})
        for path in (CHAT, "/v1/completions", "/v1/responses")
        for field, given in LATE.items()
        if path != "/v1/responses" or field == "logit_bias"
    ),
    ("embeddings", "/v1/completions", {"prompt_embeds": "abc"}),
]


def _named(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


PATTERNS = {f"p{i}": {"type": "string", "pattern": f"^[a-z]{{1,20}}{i}$"} for i in range(3000)}
SCHEMAS: dict[str, Any] = {
    "3,000 patterns": _named(**PATTERNS),
    "90 slow patterns": _named(
        **{f"p{i}": {"type": "string", "pattern": f"^[a-z]{{1,{i + 20}}}$"} for i in range(90)}
    ),
    "3,000 pattern properties": {
        "type": "object",
        "patternProperties": {f"^a{i}.*$": {} for i in range(3000)},
    },
    "100,000 enum entries": {"enum": [f"v{i}" for i in range(100_000)]},
    "10,000 properties": _named(**{f"p{i}": {"type": "string"} for i in range(10_000)}),
    "2,000 optional properties": {
        "type": "object",
        "properties": {f"p{i}": {} for i in range(2000)},
    },
    "a reference to itself": {"$ref": "#"},
    "references in a circle": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        "$ref": "#/$defs/a",
    },
    "a reference elsewhere": {"$ref": "http://127.0.0.1:1/schema.json"},
    "a reference to a file": {"$ref": "file:///etc/passwd"},
    "a reference to nowhere": {"$ref": "#/$defs/nowhere"},
    "a string of 10^9": {"type": "string", "maxLength": 10**9},
    "a type of nobody": {"type": "stringy"},
    "a regex that is none": {"type": "string", "pattern": "([a-z"},
}
REGEXES = {
    "an automaton that explodes": "(.|a)*a(.|b){200}c",
    "repetition of repetition": "((a{1,100}){1,100}){1,100}",
    "5,000 groups": "(" * 5000 + "a" + ")" * 5000,
    "5,000 alternatives": "(foo|bar)" * 5000,
    "no regex": "([a-z",
    "a NUL": "a\0b",
}
GRAMMARS = {
    "a grammar of circles": "root ::= a\na ::= b\nb ::= a",
    "a grammar that is none": "root ::= (((",
    "a grammar of 200 kB": "root ::= " + '"a" ' * 50_000,
}


def _bound(path: str, schema: Any) -> dict[str, Any]:
    """The schema where this route takes one."""
    form = {"type": "json_schema", "name": "x", "schema": schema}
    if path == "/v1/responses":
        return {"text": {"format": form}}
    if path == "/v1/messages":
        return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    }


def _binding() -> Iterator[tuple[str, str, dict[str, Any]]]:
    yield from ((name, CHAT, _bound(CHAT, schema)) for name, schema in SCHEMAS.items())
    for path in ("/v1/completions", "/v1/responses", "/v1/messages", "/thinking"):
        for name in ("3,000 patterns", "a string of 10^9", "a reference to itself"):
            yield name, path, _bound(path, SCHEMAS[name])
    for name, regex in REGEXES.items():
        yield name, CHAT, {"structured_outputs": {"regex": regex}}
    for name, grammar in GRAMMARS.items():
        yield name, CHAT, {"structured_outputs": {"grammar": grammar}}
    yield (
        "20,000 choices",
        CHAT,
        {"structured_outputs": {"choice": [f"v{i}" for i in range(20_000)]}},
    )
    slow = SCHEMAS["90 slow patterns"]
    function = {"type": "function", "function": {"name": "f", "parameters": slow}}
    yield "a slow tool", CHAT, {"tools": [function]}
    yield "a slow tool", "/v1/messages", {"tools": [{"name": "f", "input_schema": slow}]}
    yield (
        "a slow tool",
        "/v1/responses",
        {"tools": [{"type": "function", "name": "f", "parameters": slow}]},
    )


def cases() -> Iterator[Case]:
    for path, good in GOOD.items():
        yield from (Case(name, path, content) for name, content in _texts(path))
        yield from (Case(name, path, content, told) for name, content, told in _declared(path))
        for name, change in _fields(path):
            yield Case(name, path, json.dumps(good | change).encode())
    for name, path, change in [*OPENAI, *_binding()]:
        yield Case(name, path, json.dumps(GOOD[path] | change).encode())


# Looks bad, is legal, and is served. Path -> body, and why that is no harm.
LEGAL: dict[str, tuple[str, bytes]] = {
    "a name twice: the last counts, to every layer": (
        CHAT,
        json.dumps(GOOD[CHAT]).encode()[:-1] + b', "n": 5000, "n": 1}',
    ),
    "an escaped NUL is a character": (
        CHAT,
        json.dumps(GOOD[CHAT]).replace("Hi", "a\\u0000b").encode(),
    ),
    "a backtracker's nightmare is a small automaton": (
        CHAT,
        json.dumps(GOOD[CHAT] | {"structured_outputs": {"regex": "(x+x+)+y"}}).encode(),
    ),
    "alternatives that overlap are, too": (
        CHAT,
        json.dumps(GOOD[CHAT] | {"structured_outputs": {"regex": "(a|b|ab)*c"}}).encode(),
    ),
    "a tree refers to itself below a property": (
        CHAT,
        json.dumps(
            GOOD[CHAT] | _bound(CHAT, _named(c={"type": "array", "items": {"$ref": "#"}}))
        ).encode(),
    ),
}
