"""What an answer's value is, and which values are equal."""

import pytest

from gateway.thinking.values import as_number, canonical, final_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("So \\boxed{41} no, \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("The answer is 42.", "42"),
        ("answer: Paris.", "Paris"),
        ("I count.\nThat makes 7 birds", "7"),
        ("**B**", "B"),
        ("It is a fine day.", None),
        ("From 3 to 9", None),
        ("", None),
        ("\\boxed{never closed", None),
    ],
)
def test_the_value_of_an_answer(text: str, value: str | None) -> None:
    assert final_value(text) == value


@pytest.mark.parametrize(
    "same",
    [
        ["42", "42.0", "84/2", " 42 ", "$42$", "42."],
        ["0.5", "50%", "1/2", "\\frac{1}{2}"],
        ["1000", "1,000", "1000.00"],
        ["Paris", " paris. ", "PARIS!"],
        ['{"a": 1, "b": 2}', '{"b":2,"a":1}'],
    ],
)
def test_equal_values_have_one_spelling(same: list[str]) -> None:
    assert len({canonical(value) for value in same}) == 1


def test_different_values_stay_different() -> None:
    values = ["1", "-1", "0.1", "1,0", "10", "Paris", "London", "[1]", "[1, 2]", "1/3"]

    assert len({canonical(value) for value in values}) == len(values)


@pytest.mark.parametrize("text", ["9" * 1000, "1/0", "9" * 41, "one", ""])
def test_absurd_numbers_are_none(text: str) -> None:
    assert as_number(text) is None


def test_hostile_text_ends_at_once() -> None:
    for text in ("9" * 10**6, "\\boxed{" * 10**5, "{" * 10**5, "answer is " * 10**5, "1," * 10**5):
        assert canonical(final_value(text) or "nothing")
