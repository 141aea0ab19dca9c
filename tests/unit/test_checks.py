"""Checks that need no second model: what passes, what is told, and what hostile text cannot do."""

import itertools
import json
from typing import Any

import pytest

from gateway.thinking.checks import CHECKS, Check, Evidence, overall, run_checks
from gateway.thinking.steps import Step


def checked(name: str, **changes: Any) -> Check:
    fields: dict[str, Any] = {
        "reasoning": "",
        "answer": "",
        "answer_source": "model",
        "end_reason": "natural",
        "finish_reason": "stop",
        "steps": [],
    }
    return next(check for check in run_checks(Evidence(**fields | changes)) if check.name == name)


def status(name: str, **changes: Any) -> str:
    return checked(name, **changes).status


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        *(("natural", "pass"), ("tool_call", "pass"), ("budget", "warn"), ("eos", "warn")),
        *(("loop", "fail"), ("skipped", "skip"), ("answer_now", "warn"), ("early_exit", "warn")),
    ],
)
def test_how_the_thought_ended(reason: str, expected: str) -> None:
    assert status("thought_end", end_reason=reason) == expected


def test_where_the_answer_came_from_and_whether_it_is_whole() -> None:
    assert status("answer_source", answer_source="extracted_from_reasoning") == "fail"
    assert status("answer_complete", finish_reason="length") == "warn"
    assert (status("answer_source"), status("answer_complete")) == ("pass", "pass")


@pytest.mark.parametrize(
    ("claim", "right"),
    [
        *(("2 + 2 = 4", True), ("2 + 2 = 5", False), ("3 x 4 = 12", True), ("3 × 4 = 13", False)),
        *(("1 / 3 = 0.33", True), ("1 / 3 = 0.34", False), ("0.1 + 0.2 = 0.3", True)),
        *(("2 + 3 * 4 = 14", True), ("1,000 - 1 = 999", True), ("2^10 = 1024", True)),
        *(("1 + 2 + 3 = 6", True), ("1 + 2 + 3 = 7", False), ("7 / 2 = 3", False)),
    ],
)
def test_arithmetic_is_computed_again_exactly(claim: str, right: bool) -> None:
    assert status("arithmetic", answer=f"So {claim}.") == ("pass" if right else "fail")
    assert status("arithmetic", reasoning=f"So {claim}.") == ("pass" if right else "warn")


@pytest.mark.parametrize("text", ["nothing to compute", "x + y = 3"])
def test_without_a_calculation_there_is_nothing_to_check(text: str) -> None:
    assert status("arithmetic", answer=text) == "skip"


@pytest.mark.parametrize("claim", ["9^999999999 = 1", "1 / 0 = 1", f"{'9' * 60} + 1 = 2"])
def test_absurd_calculations_cost_nothing_and_are_not_judged(claim: str) -> None:
    assert status("arithmetic", answer=claim) in ("pass", "skip")


def test_the_answer_is_held_against_the_thought() -> None:
    assert status("answer_agrees", reasoning="The answer is 42.0", answer="\\boxed{42}") == "pass"
    assert status("answer_agrees", reasoning="The answer is 41", answer="\\boxed{42}") == "warn"
    assert status("answer_agrees", reasoning="Hm.", answer="42") == "skip"


@pytest.mark.parametrize(
    ("repeated", "expected"), [(0, "pass"), (1, "pass"), (3, "warn"), (7, "fail")]
)
def test_repeated_steps(repeated: int, expected: str) -> None:
    names = [*(["same"] * (repeated + 1)), *(f"step {i}" for i in range(9 - repeated))]
    steps = [Step(i, "other", name, (i, i + 1), None) for i, name in enumerate(names)]

    assert status("repeated_steps", steps=steps) == expected


@pytest.mark.parametrize("tag", ["<think>", "</think>", "<tool_call>", "<|im_start|>"])
def test_template_marks_in_the_answer_are_found(tag: str) -> None:
    assert status("leaked_tags", answer=f"a {tag} b") == "fail"
    assert status("leaked_tags", answer="a < b > c | d") == "pass"


def shaped(schema: dict[str, Any], answer: str) -> str:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return status("answer_format", answer=answer, response_format=form)


def test_the_format_is_checked() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    anything = {"type": "json_object"}

    assert [shaped(schema, text) for text in ('{"a": 1}', '{"a": "x"}', "a: 1")] == [
        *("pass", "fail", "fail")
    ]
    assert status("answer_format", answer="{}", response_format=anything) == "pass"
    assert status("answer_format", answer="{") == "skip"


def test_a_strangers_schema_neither_hangs_nor_calls_out() -> None:
    slow = {"type": "string", "pattern": "^(a+)+$"}
    far = {"$ref": "http://127.0.0.1:1/schema.json"}

    assert shaped(slow, json.dumps("a" * 40 + "!")) == "pass"
    assert shaped(far, "{}") == "skip"
    assert shaped({"type": 5}, "{}") in ("skip", "fail")


def test_a_change_of_script_is_told() -> None:
    english, chinese = "This is a thought in English.", "这是一个用中文写成的回答内容。"

    assert status("language", reasoning=english, answer=english) == "pass"
    assert status("language", reasoning=english, answer=chinese) == "warn"
    assert status("language", reasoning=english, answer="42") == "skip"


def test_every_check_is_told_once_and_in_order() -> None:
    checks = run_checks(Evidence("", "", "model", "natural", "stop", []))

    assert [check.name for check in checks] == list(CHECKS)
    assert all(check.detail for check in checks)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [(("pass", "skip"), "passed"), (("pass", "warn"), "warnings"), (("warn", "fail"), "failed")],
)
def test_the_worst_check_decides(statuses: tuple[str, ...], expected: str) -> None:
    for order in itertools.permutations(statuses):
        assert overall([Check("x", status, "") for status in order]) == expected


def test_hostile_text_ends_at_once() -> None:
    for text in ("1+" * 50_000, "1" * 100_000, "=" * 100_000, "1 = " * 25_000, "{" * 100_000):
        run_checks(Evidence(text, text, "model", "natural", "stop", [], {"type": "json_object"}))
