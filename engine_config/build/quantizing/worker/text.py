"""Passages to windows of token ids."""

from typing import Any

from .events import Refused

MIN_TOKENS = 32


def encode(tokenizer: Any, passages: list[Any]) -> list[int]:
    """All passages one after another. A passage is a text, or a conversation as a list of messages.

    Raises:
        Refused: there are conversations and the model has no chat template.
    """
    ids: list[int] = []
    for passage in passages:
        text = passage if isinstance(passage, str) else conversation(tokenizer, passage)
        ids += tokenizer.encode(text.strip() + "\n\n", add_special_tokens=False)
    return ids


def conversation(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # a template is a program: it may raise anything
        raise Refused(f"the model's chat template refuses a conversation: {error}") from error


def windows(ids: list[int], length: int) -> list[list[int]]:
    """Pieces of `length` tokens one after another; the last may be shorter."""
    pieces = [ids[start : start + length] for start in range(0, len(ids), length)]
    return [piece for piece in pieces if len(piece) > 1]


def samples(ids: list[int], count: int, length: int) -> list[list[int]]:
    """At most `count` windows of equal length, spread evenly; they overlap where text is short.

    Raises:
        Refused: there is too little text.
    """
    if len(ids) < MIN_TOKENS:
        raise Refused(
            f"the calibration text has {len(ids)} tokens for this model; at least {MIN_TOKENS}."
        )
    length = min(length, len(ids))
    last = len(ids) - length
    starts = {round(last * index / max(1, count - 1)) for index in range(count)}
    return [ids[start : start + length] for start in sorted(starts)]
