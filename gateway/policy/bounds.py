"""Every integer, list and part of an OpenAI-style body is bounded before the engine sees it.

Stock vLLM hangs its whole front end on `n: 5000`; see docs/security.md for the incidents behind each row.
Types are left to vLLM's own models, which refuse wrong ones with a 400.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from gateway.errors import InvalidRequest
from gateway.settings import Settings

# Field -> the setting that bounds its value.
INTEGERS = {
    "n": "max_n",
    "samples": "max_n",
    "best_of": "max_n",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "max_output_tokens": "max_output_tokens",
    "min_tokens": "max_output_tokens",
    "top_logprobs": "max_logprobs",
    "logprobs": "max_logprobs",
    "prompt_logprobs": "max_logprobs",
}
# Field -> the setting that bounds how many entries it has.
LISTS = {
    "stop": "max_stop_strings",
    "stop_sequences": "max_stop_strings",
    "messages": "max_messages",
    "input": "max_messages",
    "tools": "max_tools",
    "bad_words": "max_tools",
}
# Field -> why no request may set it.
FORBIDDEN = {
    "chat_template": "the template is the operator's",
    "prompt_embeds": "prompts are text or token ids",
    "mm_processor_kwargs": "this server takes text only",
    "media_io_kwargs": "this server takes text only",
    "kv_transfer_params": "it is internal to a serving cluster",
    "ec_transfer_params": "it is internal to a serving cluster",
    "use_beam_search": "one request could occupy the engine alone",
}
# vLLM walks these before its models have looked at them, and then speaks of Python types.
TYPES: dict[str, tuple[type, str]] = {
    "messages": (list, "a list of messages"),
    "tools": (list, "a list of tools"),
    "chat_template_kwargs": (dict, "an object"),
}
TEMPLATE_KWARGS = {"enable_thinking", "thinking", "reasoning_effort", "preserve_thinking"}
TEXT_PARTS = {
    *(
        "text",
        "input_text",
        "output_text",
        "refusal",
        "reasoning",
        "reasoning_text",
        "summary_text",
    ),
    *("thinking", "redacted_thinking", "tool_use", "tool_result"),
    # Items of the Responses API that stand beside messages.
    *("message", "function_call", "function_call_output", "custom_tool_call"),
    *("custom_tool_call_output", "item_reference"),
}


def parse(body: bytes) -> dict[str, Any]:
    """The body as an object.

    Raises:
        InvalidRequest: not JSON, or not an object.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(request, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {_kind(request)}")
    return request


def check(request: Mapping[str, Any], settings: Settings) -> None:
    """Refuse what exceeds a limit or is not offered.

    Raises:
        InvalidRequest: naming the field, the limit and the value.
    """
    _check_depth(request, settings.max_json_depth)
    for field, why in FORBIDDEN.items():
        if request.get(field):
            raise InvalidRequest(f"'{field}' is not accepted from a request: {why}", field)
    _check_types(request)
    _check_sizes(request, settings)
    _check_prompts(request.get("prompt"), settings)
    _check_template_kwargs(request.get("chat_template_kwargs"))
    _check_text_only(request)


def _check_types(request: Mapping[str, Any]) -> None:
    for field, (kind, wanted) in TYPES.items():
        if not isinstance(request.get(field, kind()), kind) and request[field] is not None:
            raise InvalidRequest(f"'{field}' must be {wanted}, not {_kind(request[field])}", field)


def _check_sizes(request: Mapping[str, Any], settings: Settings) -> None:
    for field, setting in INTEGERS.items():
        value = _number(request.get(field))
        if value > (limit := getattr(settings, setting)):
            raise InvalidRequest(_over(field, f"{value:.15g}", limit, setting), field)
    for field, setting in LISTS.items():
        entries = request.get(field)
        if isinstance(entries, list) and len(entries) > (limit := getattr(settings, setting)):
            raise InvalidRequest(_over(field, f"{len(entries)} entries", limit, setting), field)


def _over(field: str, given: str, limit: int, setting: str) -> str:
    return f"'{field}' is {given}; the limit is {limit} (setting GATEWAY_{setting.upper()})"


def _number(value: object) -> float:
    """As pydantic will read it: "5000" and 5000.0 are integers to it too. Anything else: minus infinity."""
    if isinstance(value, int | float | str):
        try:
            return float(value)
        except (ValueError, OverflowError):
            return math.inf if isinstance(value, int) else -math.inf
    return -math.inf


def _check_prompts(prompt: object, settings: Settings) -> None:
    """A list of token ids is one prompt; a list of texts or of lists is as many as it has."""
    if not isinstance(prompt, list) or (prompt and isinstance(prompt[0], int)):
        return
    if len(prompt) > settings.max_prompts:
        given = f"{len(prompt)} prompts"
        raise InvalidRequest(_over("prompt", given, settings.max_prompts, "max_prompts"), "prompt")


def _check_template_kwargs(kwargs: object) -> None:
    if not isinstance(kwargs, dict):
        return
    if foreign := sorted(kwargs.keys() - TEMPLATE_KWARGS):
        allowed = ", ".join(sorted(TEMPLATE_KWARGS))
        raise InvalidRequest(
            f"chat_template_kwargs takes {allowed}; not {', '.join(foreign)}",
            "chat_template_kwargs",
        )


def _check_text_only(request: Mapping[str, Any]) -> None:
    for field in ("messages", "input", "system"):
        for kind in _part_types(request.get(field)):
            if kind not in TEXT_PARTS:
                raise InvalidRequest(
                    f"'{field}' has a part of type {kind!r}; this server takes text only", field
                )


def _part_types(value: object) -> Iterator[object]:
    """The type of each content part and item, those inside tool results too.

    vLLM guesses the type of a part without one by its keys, so only a bare text may be without.
    """
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        if "type" in entry:
            yield entry["type"]
        elif "role" not in entry and entry.keys() != {"text"}:
            yield "unknown"
        yield from _part_types(entry.get("content"))
        yield from _part_types(entry.get("output"))


def _check_depth(value: object, limit: int) -> None:
    level = [value]
    for _ in range(limit):
        children: list[object] = []
        for entry in level:
            if isinstance(entry, dict):
                children.extend(entry.values())
            elif isinstance(entry, list):
                children.extend(entry)
        if not children:
            return
        level = children
    raise InvalidRequest(
        f"the body is nested deeper than {limit} levels (setting GATEWAY_MAX_JSON_DEPTH)"
    )


def _kind(value: object) -> str:
    names: dict[type, str] = {
        list: "a list",
        dict: "an object",
        str: "a string",
        bool: "a boolean",
        type(None): "null",
    }
    return names.get(type(value), "a number")
