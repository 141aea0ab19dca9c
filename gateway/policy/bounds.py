"""Every integer, list and part of an OpenAI-style body is bounded before the engine sees it.

Stock vLLM hangs its whole front end on `n: 5000`; see docs/security.md for the incidents behind each row.
Types are left to vLLM's own models, which refuse wrong ones with a 400.
"""

import contextlib
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
    "thinking_token_budget": "max_output_tokens",
    "thinking_budget": "max_output_tokens",
}
# Field -> smallest and largest value. What vLLM takes beyond these overflows, or makes no numbers.
RANGES = {
    "priority": (-1000, 1000),
    "seed": (-(2**63), 2**63 - 1),
    "top_k": (-1, 2**31 - 1),
    "truncate_prompt_tokens": (-1, 2**31 - 1),
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0, 10),
    "length_penalty": (-10, 10),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
# Field -> the setting that bounds how many entries it has.
LISTS = {
    "stop": "max_stop_strings",
    "stop_sequences": "max_stop_strings",
    "messages": "max_messages",
    "input": "max_messages",
    "tools": "max_tools",
    "bad_words": "max_tools",
    "system": "max_messages",
    "documents": "max_messages",
    "include": "max_tools",
    "logit_bias": "max_token_ids",
    "stop_token_ids": "max_token_ids",
    "allowed_token_ids": "max_token_ids",
    "logprob_token_ids": "max_token_ids",
}
# Fields that may be a list of token ids as long as the body.
PROMPTS = ("prompt", "tokens")
# Fields that name tokens of the model by their ids.
TOKEN_IDS = ("logit_bias", "stop_token_ids", "allowed_token_ids", "logprob_token_ids")
# Field -> the setting that bounds the length of each of its texts.
TEXTS = {
    "stop": "max_stop_chars",
    "stop_sequences": "max_stop_chars",
    "bad_words": "max_stop_chars",
}
# Texts that are as long as the body may be. All others name something.
LONG = {"prompt", "text", "input", "instructions", "system", "question", "suffix"}
# OpenAI's own limits of `metadata`: https://platform.openai.com/docs/api-reference/chat/create
METADATA = (16, 64, 512)  # pairs, characters of a name and of a value
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
    "structured_outputs": (dict, "an object"),
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


def check_shape(request: Mapping[str, Any], settings: Settings) -> None:
    """Refuse what is nested too deeply, or has too many values: models behind us make an error of each that
    is wrong, and hold the event loop for up to 40 s. Prompts of token ids are looked at here instead.

    Raises:
        InvalidRequest: naming the limit, or the entry that is no token id.
    """
    values, limit = 0, settings.max_json_values
    level: list[object] = [
        {
            field: value
            for field, value in request.items()
            if field not in PROMPTS or not _are_tokens(field, value, settings.max_prompts)
        }
    ]
    for _ in range(settings.max_json_depth):
        children: list[object] = []
        for entry in level:
            if isinstance(entry, dict):
                children.extend(entry.values())
            elif isinstance(entry, list):
                children.extend(entry)
        values += len(children)
        if values > limit:
            raise InvalidRequest(
                f"the body has more than {limit} values (setting GATEWAY_MAX_JSON_VALUES)"
            )
        if not children:
            return
        level = children
    raise InvalidRequest(
        f"the body is nested deeper than {settings.max_json_depth} levels (setting GATEWAY_MAX_JSON_DEPTH)"
    )


def _are_tokens(field: str, given: object, most: int) -> bool:
    """A list of token ids, or at most so many of them; each could be an id of some model."""
    if not isinstance(given, list) or not given:
        return False
    lists = given if len(given) <= most and isinstance(given[0], list) else [given]
    if not all(isinstance(each, list) and each and isinstance(each[0], int) for each in lists):
        return False
    for each in lists:
        for index, token in enumerate(each):
            if type(token) is not int or not 0 <= token < 2**63:
                told = token if isinstance(token, int | float) else _kind(token)
                raise InvalidRequest(
                    f"'{field}' has no token id as its entry {index}, but {told}", field
                )
    return True


def check(request: Mapping[str, Any], settings: Settings) -> None:
    """Refuse what exceeds a limit or is not offered.

    Raises:
        InvalidRequest: naming the field, the limit and the value.
    """
    for field, why in FORBIDDEN.items():
        if request.get(field):
            raise InvalidRequest(f"'{field}' is not accepted from a request: {why}", field)
    _check_types(request)
    _check_sizes(request, settings)
    _check_ranges(request)
    _check_texts(request, settings)
    _check_metadata(request.get("metadata"))
    _check_prompts(request.get("prompt"), settings)
    _check_template_kwargs(request.get("chat_template_kwargs"))
    _check_text_only(request)


def check_ids(request: Mapping[str, Any], vocab_size: int | None) -> None:
    """Refuse a token id that the model does not have. None: nobody knows which it has.

    Raises:
        InvalidRequest: naming the field and the id.
    """
    if vocab_size is None:
        return
    for field in TOKEN_IDS:
        for number in _ids(request.get(field)):
            if not 0 <= number < vocab_size:
                raise InvalidRequest(
                    f"'{field}' names token {number:.15g}; the model's are 0 to {vocab_size - 1}",
                    field,
                )


def _ids(given: object) -> Iterator[float]:
    """What of a list, or of an object's names, is a number; wrong types are vLLM's to refuse."""
    for each in given if isinstance(given, list | dict) else ():
        if isinstance(each, str | int | float):
            with contextlib.suppress(ValueError):
                yield float(each)


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
        if isinstance(entries, list | dict) and len(entries) > (
            limit := getattr(settings, setting)
        ):
            raise InvalidRequest(_over(field, f"{len(entries)} entries", limit, setting), field)


def _check_ranges(request: Mapping[str, Any]) -> None:
    for field, (least, most) in RANGES.items():
        value = _number(request.get(field))
        if value > most or -math.inf < value < least:
            raise InvalidRequest(
                f"'{field}' is {value:.15g}; it must be between {least} and {most}", field
            )


def _check_texts(request: Mapping[str, Any], settings: Settings) -> None:
    for field, value in request.items():
        if field in LONG:
            continue
        setting = TEXTS.get(field, "max_field_chars")
        limit = getattr(settings, setting)
        for text in value if isinstance(value, list) else (value,):
            if isinstance(text, str) and len(text) > limit:
                raise InvalidRequest(
                    _over(field[:64], f"{len(text)} characters", limit, setting), field[:64]
                )


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict):
        return
    pairs, name_chars, value_chars = METADATA
    sizes = [(len(name), len(str(value))) for name, value in metadata.items()]
    if len(sizes) > pairs or any(n > name_chars or v > value_chars for n, v in sizes):
        raise InvalidRequest(
            f"'metadata' takes {pairs} pairs, names of {name_chars} and values of {value_chars} characters",
            "metadata",
        )


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
        return  # vLLM refuses what does not fit the context before it looks at the ids
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
            if not isinstance(kind, str) or kind not in TEXT_PARTS:
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


def _kind(value: object) -> str:
    names: dict[type, str] = {
        list: "a list",
        dict: "an object",
        str: "a string",
        bool: "a boolean",
        type(None): "null",
    }
    return names.get(type(value), "a number")
