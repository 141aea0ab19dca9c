"""The marks of a thought in a model's own tokens, and the text of a few tokens of it."""

from collections.abc import Sequence

import pytest

from gateway.thinking.dialect import CLOSE, CONTEXT, EARLY_STOP, OPEN, Dialect, dialect_of
from tests.runs import each_dialect
from tests.scripted import KNOWS_MARKS, OCTETS, PLAIN_TEXT, VOCABULARY, text_of, tokens

EOS = ord("$")
ENDED = Dialect(tokens, text_of, VOCABULARY, frozenset({EOS}))


@each_dialect
def test_the_marks_are_what_the_tokenizer_makes_of_them(dialect: Dialect) -> None:
    parts = (dialect.open, dialect.close, dialect.tool_call, dialect.phrase)

    assert [dialect.decode(part) for part in parts] == [OPEN, CLOSE, "<tool_call>", EARLY_STOP]


@pytest.mark.parametrize(
    ("dialect", "marks"),
    [(KNOWS_MARKS, ["<think>", CLOSE]), (OCTETS, ["<think>", CLOSE]), (PLAIN_TEXT, [])],
)
def test_marks_that_are_one_token_are_known(dialect: Dialect, marks: list[str]) -> None:
    assert dialect.knows_marks is bool(marks)
    assert [dialect.decode([mark]) for mark in dialect.marks] == marks


@each_dialect
@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<user>hi<think>\n", True),
        ("<think>\n", True),
        ("<user>hi", False),
        ("<user>hi<think>", False),
        ("<think>\n\n</think>\n\n", False),
        ("<think>\nHm", False),
        ("", False),
    ],
)
def test_a_prompt_that_ends_where_a_thought_begins_is_told(
    dialect: Dialect, prompt: str, opened: bool
) -> None:
    assert dialect.opened(dialect.encode(prompt)) is opened


def test_sentences_end_at_marks_of_punctuation_and_lines() -> None:
    dialect = Dialect(tokens, text_of, 0x10000)

    ends = {chr(token) for token in dialect.sentence_ends}

    assert ends == {"\n", ".", "!", "?", "。", "！", "？"}


def test_a_sentence_may_end_in_a_token_with_a_blank_behind_it() -> None:
    pieces = ["so", ". ", ".\n", " .x", "?!  ", " ", ""]
    dialect = Dialect(lambda text: (0,), lambda ids: pieces[ids[0]], len(pieces))

    assert dialect.sentence_ends == {1, 2, 4}


def test_the_last_resort_can_draw_only_what_can_be_seen_and_the_end() -> None:
    visible = {ENDED.decode([token]) for token in ENDED.visible}

    assert {"a", "4", "é", "$"} <= visible
    assert not visible & {" ", "\n", "\t", "\u3000", "<", "<think>", CLOSE, "<tool_call>", "\ufffd"}


def test_half_characters_are_no_last_resort() -> None:
    assert all(token < 0x80 for token in OCTETS.visible)


@pytest.mark.parametrize(
    ("before", "ids", "text"),
    [
        ("", "abc", "abc"),
        ("ab", "c", "c"),
        ("a" * 3 * CONTEXT, "é€", "é€"),
        ("€" * 9, "€", "€"),
        ("</think>", "\n", "\n"),
    ],
)
def test_text_behind_is_what_the_tokens_add(before: str, ids: str, text: str) -> None:
    assert OCTETS.text_behind(OCTETS.encode(before), OCTETS.encode(ids)) == text


def test_text_behind_leaves_half_a_character_out_and_gives_it_when_it_is_whole() -> None:
    euro = OCTETS.encode("a€")

    assert OCTETS.text_behind((), euro[:3]) == "a"
    assert OCTETS.text_behind(euro[:3], euro[3:]) == "€"


def test_text_behind_keeps_a_blank_that_some_tokenizers_drop_in_front() -> None:
    def decode(ids: Sequence[int]) -> str:  # as SentencePiece does
        return "".join(map(chr, ids)).removeprefix(" ")

    dialect = Dialect(lambda text: tuple(map(ord, text)), decode, 128)

    assert dialect.text_behind((ord("a"),), tuple(map(ord, " b"))) == " b"


def test_a_tokenizer_is_asked_for_no_tokens_of_its_own_and_shows_all_it_has() -> None:
    class Told:
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [1] * add_special_tokens + list(tokens(text))

        def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
            return text_of([token for token in ids if token < 0xE000 or not skip_special_tokens])

    dialect = dialect_of(Told(), VOCABULARY, frozenset({EOS}))

    assert (dialect.open, dialect.close) == (tokens(OPEN), tokens(CLOSE))
    assert dialect.decode(dialect.close) == CLOSE
    assert dialect.eos == {EOS}
