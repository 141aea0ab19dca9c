"""Questions with known answers: read, made and judged. Their use is `gateway calibrate`.

They are made by PyPI's `reasoning-gym` (https://github.com/open-thought/reasoning-gym, Apache-2.0): new
ones for every seed, so that no model has learned them by heart.
"""

import hashlib
import importlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gateway.thinking.values import as_number, canonical, final_value

MAKER = "pip install 'thinking-gateway[calibrate]'"
SHORT = 30  # characters of a gold answer that is looked for as words
OPPOSITES = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
SPARE = 4  # drawn for each one wanted: easy levels repeat themselves

Level = Mapping[str, Any]

# reasoning-gym's names and settings, each from easy to hard: a calibration needs right and wrong answers
# of the same kind. The first level is one that a model of 135 million parameters gets partly right.
TASKS: dict[str, tuple[Level, ...]] = {
    "chain_sum": (
        {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
        {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
        {"min_terms": 3, "max_terms": 5, "min_digits": 2, "max_digits": 3},
    ),
    # Without division: of "5 / 9" 0.1.25 says 10.
    "basic_arithmetic": (
        {"max_terms": 2, "max_digits": 1, "operators": ("+", "-"), "allow_negation": False},
        {"min_terms": 3, "max_terms": 4, "max_digits": 2, "operators": ("+", "-", "*")},
    ),
    "products": ({"max_digits": 1}, {"min_digits": 1, "max_digits": 2}),
    "gcd": ({"max_value": 12}, {"max_value": 300}),
    "lcm": ({"max_value": 10}, {"max_value": 60}),
    "leg_counting": (
        {"min_animals": 1, "max_animals": 1, "max_instances": 2},
        {"min_animals": 2, "max_animals": 4, "max_instances": 8},
    ),
    "letter_counting": (
        {"min_words": 1, "max_words": 2},
        {"min_words": 5, "max_words": 10},
    ),
    "spell_backward": (
        {"min_word_len": 3, "max_word_len": 3},
        {"min_word_len": 4, "max_word_len": 7},
    ),
    "simple_equations": (
        {"max_terms": 2, "max_value": 5},
        {"max_terms": 3, "max_value": 50},
    ),
    # Of 0 its answer is the empty text; letters as digits would be read as choices.
    "base_conversion": (
        {"max_base": 10, "min_value": 1, "max_value": 8},
        {"max_base": 10, "min_value": 9, "max_value": 300},
    ),
    "syllogism": ({},),
    "calendar_arithmetic": ({"tasks": ["is_leap_year"]}, {"tasks": ["weekday_of_date"]}),
    "family_relationships": ({"max_family_size": 4}, {"max_family_size": 8}),
    "simple_geometry": ({"max_sides": 3}, {"max_sides": 5}),
    "gsm_symbolic": ({},),
}


class QuestionsError(Exception):
    """The message says what to change."""


@dataclass(frozen=True, slots=True)
class Question:
    """`task` is its kind: questions of one task are held out together."""

    id: str
    task: str
    question: str
    answer: str  # the gold one


def read_questions(path: Path) -> list[Question]:
    """JSON lines with the text fields `id`, `task`, `question`, `answer`; other fields are let be.

    Raises:
        QuestionsError: with the line's number.
    """
    questions: dict[str, Question] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise QuestionsError(f"{path}: not UTF-8: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        question = _question(line, f"{path}:{number}")
        if question.id in questions:
            raise QuestionsError(f"{path}:{number}: the id {question.id!r} was used before")
        questions[question.id] = question
    if not questions:
        raise QuestionsError(f"{path}: no questions")
    return list(questions.values())


def _question(line: str, where: str) -> Question:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise QuestionsError(f"{where}: not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise QuestionsError(f"{where}: not an object")
    for key in ("id", "task", "question", "answer"):
        if not isinstance(raw.get(key), str) or not raw[key].strip():
            raise QuestionsError(f"{where}: '{key}' must be a text")
    return Question(raw["id"], raw["task"], raw["question"], raw["answer"])


def is_right(answer: str, gold: str) -> bool:
    """The answer's value, or all of it, is the gold one; or a short gold one that is no number or letter
    stands as words in the answer's last line, and its opposite does not ("yes or no?" is no yes)."""
    words = canonical(gold)
    if words in (canonical(final_value(answer) or answer), canonical(answer)):
        return True
    lines = answer.strip().casefold().splitlines()
    if not lines or not 1 < len(words) <= SHORT or as_number(words) is not None:
        return False
    opposite = OPPOSITES.get(words)
    return _stands(words, lines[-1]) and not (opposite and _stands(opposite, lines[-1]))


def _stands(words: str, line: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", line) is not None


def make(out: Path, per_task: int, seed: int, tasks: Sequence[str] = tuple(TASKS)) -> int:
    """Write `per_task` questions of each task, as many of each level, as JSON lines. Returns how many.

    Fewer where a task has no more different ones.

    Raises:
        QuestionsError: reasoning-gym is not installed, or has no such task.
    """
    if unknown := [task for task in tasks if task not in TASKS]:
        raise QuestionsError(f"no such task: {', '.join(unknown)}; there are {', '.join(TASKS)}")
    try:
        gym = importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise QuestionsError(f"making questions needs reasoning-gym; {MAKER}") from error
    made: list[Question] = []
    for task in tasks:
        pools = [
            from_dataset(task, gym.create_dataset(task, seed=seed, size=SPARE * per_task, **level))
            for level in TASKS[task]
        ]
        made.extend(mixed(pools, per_task))
    lines = [json.dumps(asdict(question), ensure_ascii=False) + "\n" for question in made]
    part = out.with_name(f"{out.name}.part")
    part.write_text("".join(lines), encoding="utf-8")
    part.replace(out)
    return len(made)


def from_dataset(task: str, entries: Iterable[Mapping[str, Any]]) -> list[Question]:
    """reasoning-gym's entries, each question once, without those that have no one answer."""
    questions: dict[str, Question] = {}
    for entry in entries:
        text, answer = entry["question"].strip(), entry["answer"]
        if isinstance(answer, str) and answer.strip() and text:
            name = f"{task}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
            questions.setdefault(name, Question(name, task, text, answer.strip()))
    return list(questions.values())


def mixed(pools: Sequence[Sequence[Question]], count: int) -> list[Question]:
    """`count` questions, as many of each pool; where one runs dry, more of the others."""
    taken: dict[str, Question] = {}
    for rank in range(max(map(len, pools), default=0)):
        for pool in pools:
            if rank < len(pool) and len(taken) < count:
                taken.setdefault(pool[rank].id, pool[rank])
    return list(taken.values())
