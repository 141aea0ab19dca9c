"""How a model opens and closes a thought, in its own tokens. Computed once when the engine opens."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway.engines.types import TokenIds

OPEN = "<think>\n"
CLOSE = "</think>"
TOOL_CALL = "<tool_call>"
EMPTY_THOUGHT = "\n</think>\n\n"
ANSWER_FOLLOWS = "\n\n"
# Qwen3 technical report 4.3. A bare cut can be worse than not thinking.
EARLY_STOP = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking "
    "directly now.\n</think>\n\n"
)
SENTENCE_ENDS = ("\n", ".", "!", "?", "。", "！", "？")
# Enough tokens before a cut that the text of the rest does not depend on what came earlier.
CONTEXT = 8


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is needed here."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


@dataclass(frozen=True)
class Dialect:
    """Token ids of the marks around a thought. `close` has one id where the model knows the mark."""

    encode: Callable[[str], TokenIds]
    decode: Callable[[Sequence[int]], str]
    vocabulary: int  # how many token ids there are
    eos: frozenset[int] = frozenset()
    open: TokenIds = field(init=False)
    close: TokenIds = field(init=False)
    tool_call: TokenIds = field(init=False)
    phrase: TokenIds = field(init=False)
    empty: TokenIds = field(init=False)
    follows: TokenIds = field(init=False)

    def __post_init__(self) -> None:
        marks = {
            "open": OPEN,
            "close": CLOSE,
            "tool_call": TOOL_CALL,
            "phrase": EARLY_STOP,
            "empty": EMPTY_THOUGHT,
            "follows": ANSWER_FOLLOWS,
        }
        for name, text in marks.items():
            object.__setattr__(self, name, self.encode(text))

    @property
    def knows_marks(self) -> bool:
        """`</think>` is one token; else it is found in the text."""
        return len(self.close) == 1

    @property
    def marks(self) -> tuple[int, ...]:
        """The tokens that open and close a thought; none where the marks are only text."""
        return (self.open[0], *self.close) if self.knows_marks else ()

    @functools.cached_property
    def sentence_ends(self) -> frozenset[int]:
        """Tokens after which a cut does not tear a sentence apart."""
        texts = enumerate(self._texts)
        return frozenset(token for token, text in texts if text.rstrip(" ").endswith(SENTENCE_ENDS))

    @functools.cached_property
    def visible(self) -> tuple[int, ...]:
        """Tokens that show something by themselves, and the ends of text: what the last resort may draw."""
        marks = {*self.open, *self.close, *self.tool_call} if self.knows_marks else set()
        shown = {
            token
            for token, text in enumerate(self._texts)
            if text.strip() and "\ufffd" not in text and not text.startswith("<")
        }
        return tuple(sorted((shown - marks) | self.eos))

    @functools.cached_property
    def _texts(self) -> list[str]:
        return [self.decode([token]) for token in range(self.vocabulary)]

    def text_behind(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """What `ids` add to the text behind `before`; an unfinished character at the end is left out."""
        context = list(before[-CONTEXT:])
        known = self.decode(context).rstrip("\ufffd")
        return self.decode([*context, *ids])[len(known) :].rstrip("\ufffd")

    def opened(self, prompt: TokenIds) -> bool:
        """The prompt ends inside a thought that has just begun."""
        return prompt[-len(self.open) :] == self.open


def dialect_of(tokenizer: Tokenizer, vocabulary: int, eos: frozenset[int]) -> Dialect:
    """The dialect of a tokenizer. Takes up to a second for a large vocabulary; run it in a thread."""

    def encode(text: str) -> TokenIds:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False)

    dialect = Dialect(encode, decode, vocabulary, eos)
    _ = dialect.sentence_ends  # a request should not wait for it
    return dialect
