"""Checks of a thought and its answer that need no second model. They check; they do not prove."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from gateway.thinking.steps import Step
from gateway.thinking.values import as_number, canonical, final_value

MAX_CLAIMS = 200
MAX_EXPONENT = 64
LEAKS = re.compile(r"</?think>|</?tool_call>|<\|[a-z_]{2,20}\|>")
TERM = r"[-+]?\d[\d,]{0,30}(?:\.\d{1,20})?"
CLAIM = re.compile(
    rf"(?<![\d.,])({TERM}(?:\s?[-+*/x×÷^−]\s?{TERM}){{1,8}})\s?=\s?({TERM})(?!\s?[-+*/x×÷^\d])"
)
PART = re.compile(rf"\s?([-+*/x×÷^−])\s?({TERM})")
CLAIMED_IN = 20_000  # last characters looked through for calculations


def _not_looked_at(*_: Any) -> tuple[()]:
    return ()


# A schema is a stranger's: its patterns could run for ever, its references could be addresses.
Validator = extend(
    Draft202012Validator, {"pattern": _not_looked_at, "patternProperties": _not_looked_at}
)
SAMPLE = 2000  # characters looked at to tell a script
ENDS = {
    "natural": ("pass", "the model closed its thought itself"),
    "tool_call": ("pass", "the thought ended in a tool call"),
    "budget": ("warn", "the thought was cut at its budget"),
    "eos": ("warn", "the model ended its turn inside the thought"),
    "answer_now": ("warn", "the caller asked for the answer"),
    "deadline": ("warn", "the request's time was nearly over"),
    "early_exit": ("warn", "the thought was ended early because the model was ready"),
    "loop": ("fail", "the thought went round in circles and was cut"),
    "skipped": ("skip", "there was no thought"),
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is checked."""

    reasoning: str
    answer: str
    answer_source: str
    end_reason: str
    finish_reason: str
    steps: Sequence[Step]
    response_format: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """`status` is pass, warn, fail or skip; `detail` one sentence for a person."""

    name: str
    status: str
    detail: str


Result = tuple[str, str]


def run_checks(evidence: Evidence) -> list[Check]:
    """All checks, always in this order."""
    return [Check(name, *check(evidence)) for name, check in CHECKS.items()]


def overall(checks: Sequence[Check]) -> str:
    """passed, warnings or failed."""
    statuses = {check.status for check in checks}
    return "failed" if "fail" in statuses else "warnings" if "warn" in statuses else "passed"


def _thought_end(evidence: Evidence) -> Result:
    return ENDS.get(evidence.end_reason, ("warn", f"the thought ended by {evidence.end_reason}"))


def _answer_source(evidence: Evidence) -> Result:
    if evidence.answer_source == "model":
        return "pass", "the model gave the answer"
    return "fail", "the model gave no answer; the last line of its thought stands in"


def _answer_complete(evidence: Evidence) -> Result:
    if evidence.finish_reason == "length":
        return "warn", "the answer was cut at max_tokens"
    return "pass", "the answer came to its end"


def _repeated_steps(evidence: Evidence) -> Result:
    texts = Counter(" ".join(step.text.casefold().split()) for step in evidence.steps)
    if len(evidence.steps) < 2:
        return "skip", "fewer than two steps"
    share = sum(count - 1 for count in texts.values()) / len(evidence.steps)
    status = "fail" if share > 0.5 else "warn" if share > 0.2 else "pass"
    return status, f"{share:.0%} of the steps repeat an earlier one"


def _answer_agrees(evidence: Evidence) -> Result:
    thought, answer = final_value(evidence.reasoning), final_value(evidence.answer)
    if thought is None or answer is None:
        return "skip", "no value to compare in the thought or in the answer"
    same = canonical(thought) == canonical(answer)
    return (
        ("pass", f"both say {answer}")
        if same
        else ("warn", f"thought: {thought}; answer: {answer}")
    )


def _arithmetic(evidence: Evidence) -> Result:
    wrong = _wrong_claim(evidence.answer)
    if wrong:
        return "fail", f"in the answer: {wrong}"
    wrong = _wrong_claim(evidence.reasoning)
    if wrong:
        return "warn", f"in the thought: {wrong}"
    said = any(CLAIM.search(text[-CLAIMED_IN:]) for text in (evidence.answer, evidence.reasoning))
    return ("pass", "every calculation is right") if said else ("skip", "no calculation was stated")


def _wrong_claim(text: str) -> str | None:
    for claim in islice(CLAIM.finditer(text[-CLAIMED_IN:]), MAX_CLAIMS):
        left, right = claim.group(1), claim.group(2)
        try:
            value = _computed(left)
        except (ArithmeticError, ValueError):
            continue
        stated = as_number(right)
        if value is not None and stated is not None and not _rounds_to(value, stated, right):
            exact = str(value) if value.denominator == 1 else f"{float(value):.6g}"
            return f"{left.strip()} = {right} should be {exact}"
    return None


def _computed(expression: str) -> Fraction | None:
    """Exactly, with the usual precedence; None for numbers of absurd size."""
    head = re.match(TERM, expression)
    number = as_number(head.group()) if head else None
    if head is None or number is None:
        return None
    sums = [number]
    for operator, text in PART.findall(expression[head.end() :]):
        if (number := as_number(text)) is None:
            return None
        if operator in "+-−":
            sums.append(number if operator == "+" else -number)
        elif operator == "^":
            if number.denominator != 1 or abs(number) > MAX_EXPONENT:
                return None
            sums[-1] **= int(number)
        else:
            sums[-1] = sums[-1] / number if operator in "/÷" else sums[-1] * number
    return sum(sums, Fraction(0))


def _rounds_to(value: Fraction, stated: Fraction, written: str) -> bool:
    decimals = len(written.partition(".")[2])
    return abs(value - stated) <= (Fraction(1, 2 * 10**decimals) if decimals else 0)


def _leaked_tags(evidence: Evidence) -> Result:
    found = LEAKS.search(evidence.answer)
    return ("fail", f"{found.group()} in the answer") if found else ("pass", "no template marks")


def _answer_format(evidence: Evidence) -> Result:
    wanted = evidence.response_format
    if wanted is None or wanted.get("type") not in ("json_object", "json_schema"):
        return "skip", "no format was asked for"
    try:
        value = json.loads(evidence.answer)
        if wanted["type"] == "json_schema":
            Validator(wanted["json_schema"]["schema"], registry=Registry()).validate(value)
    except (ValueError, RecursionError) as error:
        return "fail", f"not JSON: {error}"
    except ValidationError as error:
        return "fail", f"not as the schema has it: {error.message[:200]}"
    except (KeyError, TypeError, SchemaError, Unresolvable):
        return "skip", "the schema could not be read"
    return "pass", "JSON, as asked for"


def _language(evidence: Evidence) -> Result:
    thought, answer = _script(evidence.reasoning), _script(evidence.answer)
    if thought is None or answer is None:
        return "skip", "too little text"
    if thought == answer:
        return "pass", f"both in {thought.lower()} letters"
    return "warn", f"thought in {thought.lower()} letters, answer in {answer.lower()}"


def _script(text: str) -> str | None:
    """The most frequent script of its letters; None for fewer than eight."""
    letters = [letter for letter in text[:SAMPLE] if letter.isalpha()]
    if len(letters) < 8:
        return None
    scripts = Counter(unicodedata.name(letter, "UNKNOWN").split()[0] for letter in letters)
    return scripts.most_common(1)[0][0]


CHECKS: dict[str, Callable[[Evidence], Result]] = {
    "thought_end": _thought_end,
    "answer_source": _answer_source,
    "answer_complete": _answer_complete,
    "repeated_steps": _repeated_steps,
    "answer_agrees": _answer_agrees,
    "arithmetic": _arithmetic,
    "leaked_tags": _leaked_tags,
    "answer_format": _answer_format,
    "language": _language,
}
