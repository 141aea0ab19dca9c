"""Question sets: reading, judging, and making them without the package that makes them."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.questions import (
    TASKS,
    Question,
    QuestionsError,
    from_dataset,
    is_right,
    make,
    mixed,
    read_questions,
)

GOOD = {"id": "1", "task": "t", "question": "1 + 1?", "answer": "2"}


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("The answer is 42.", "42"),
        ("So \\boxed{84/2}", "42"),
        ("It is\n42", "42.0"),
        ("42", " 42 "),
        ("Let me see.\nIt was a Monday.", "Monday"),
        ("The answer is Monday", "monday"),
        ("Yes, it follows.", "Yes"),
        ("She is her mother-in-law.", "mother-in-law"),
        ("b1", "b1"),
        ("It is b1 in base 12.", "b1"),
        ("The word is **olleh**", "olleh"),
        ("['1', '2']", '["1", "2"]'.replace('"', "'")),
        ("(B)", "B"),
    ],
)
def test_right_answers(answer: str, gold: str) -> None:
    assert is_right(answer, gold)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("", "42"),
        ("   \n ", "Yes"),
        ("The answer is 41.", "42"),
        ("142", "42"),
        ("2 + 40 is what we look for, or 42?", "42"),  # no single number: nothing is claimed
        ("Is it yes or no?", "Yes"),
        ("No.", "Yes"),
        ("Monday, of course.\nNo: Tuesday.", "Monday"),
        ("Yesterday", "Yes"),
        ("a bold guess", "A"),
        ("it goes on and on, " * 3, "it goes on and on, " * 2),
        ("[bold]x[/bold", "Yes"),
    ],
)
def test_wrong_answers(answer: str, gold: str) -> None:
    assert not is_right(answer, gold)


def test_questions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    other = GOOD | {"id": "2", "question": "line\u2028separator", "note": "is let be"}
    path.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps(other, ensure_ascii=False)}\n")

    questions = read_questions(path)

    assert questions[0] == Question("1", "t", "1 + 1?", "2")
    assert questions[1].question == "line\u2028separator"
    assert len(questions) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"q\.jsonl:2: not JSON"),
        ("[" * 100_000, r"q\.jsonl:2: not JSON"),
        ("[]", r"q\.jsonl:2: not an object"),
        (json.dumps(GOOD | {"answer": 2}), r"q\.jsonl:2: 'answer' must be a text"),
        (json.dumps(GOOD | {"id": "2", "question": " "}), r"q\.jsonl:2: 'question' must be a text"),
        (json.dumps({"id": "2"}), r"q\.jsonl:2: 'task' must be a text"),
        (json.dumps(GOOD), r"q\.jsonl:2: the id '1' was used before"),
    ],
    ids=["torn", "deep", "list", "number", "blank", "missing", "twice"],
)
def test_a_bad_line_is_named(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n")

    with pytest.raises(QuestionsError, match=said):
        read_questions(path)


@pytest.mark.parametrize(
    ("content", "said"), [(b"\n\n", "no questions"), (b"\xff\xfe{", "not UTF-8")]
)
def test_a_file_without_questions(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(content)

    with pytest.raises(QuestionsError, match=said):
        read_questions(path)


def entry(question: str, answer: Any) -> dict[str, Any]:
    return {"question": question, "answer": answer, "metadata": {"source_dataset": "x"}}


def test_entries_without_one_answer_and_repeated_ones_are_left_out() -> None:
    entries = [
        entry(" 1 + 1 \n", "2 "),
        entry("1 + 1", "2"),
        entry("prove it", None),
        entry("base 10 of 0", ""),
        entry("", "2"),
        entry("2 + 2", "4"),
    ]

    questions = from_dataset("sum", entries)

    assert [(question.question, question.answer) for question in questions] == [
        ("1 + 1", "2"),
        ("2 + 2", "4"),
    ]
    assert {question.task for question in questions} == {"sum"}
    assert questions == from_dataset("sum", entries)
    assert len({question.id for question in questions}) == 2


def pool(*names: str) -> list[Question]:
    return [Question(name, "t", name, "1") for name in names]


def test_levels_are_mixed_and_a_dry_one_is_made_up_for() -> None:
    easy, hard = pool("a", "b"), pool("c", "d", "e", "f", "a")

    assert [question.id for question in mixed([easy, hard], 5)] == ["a", "c", "b", "d", "e"]
    assert len(mixed([easy, hard], 99)) == 6
    assert mixed([[], []], 3) == mixed([], 3) == []


def counting(name: str, seed: int, size: int, **level: Any) -> list[dict[str, Any]]:
    """A maker like reasoning-gym's `create_dataset`; every level has questions of its own."""
    text = json.dumps([name, seed, sorted(level)], default=str)
    return [entry(f"{text} {i}", str(i)) for i in range(size)]


def test_a_set_has_all_tasks_and_the_same_seed_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", SimpleNamespace(create_dataset=counting))
    first, second, third = (tmp_path / name for name in ("1.jsonl", "2.jsonl", "3.jsonl"))

    assert make(first, 6, seed=1) == 6 * len(TASKS)
    make(second, 6, seed=1)
    make(third, 6, seed=2)

    assert first.read_bytes() == second.read_bytes() != third.read_bytes()
    assert len({question.task for question in read_questions(first)}) == len(TASKS) >= 8
    assert make(first, 3, seed=1, tasks=["gcd", "lcm"]) == 6
    assert len(list(tmp_path.iterdir())) == 3


def test_an_unknown_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(QuestionsError, match="no such task: chess; there are chain_sum"):
        make(tmp_path / "q.jsonl", 1, 1, ["chess"])


def test_without_reasoning_gym_the_remedy_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)

    with pytest.raises(QuestionsError, match=r"pip install 'thinking-gateway\[calibrate\]'"):
        make(tmp_path / "q.jsonl", 1, 1)
