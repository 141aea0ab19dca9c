"""The value of an answer: what two answers are compared by."""

import json
import re
from fractions import Fraction

MAX_VALUE = 200  # characters; longer ones are texts, not values
MAX_DIGITS = 40
BOXED = "\\boxed{"
STATED = re.compile(r"\b(?:answer|result)\s*(?:is|:|=)\s*:?\s*([^\n]{1,200})", re.IGNORECASE)
NUMBER = re.compile(r"[-+]?\d[\d,]{0,60}(?:\.\d{1,40})?(?:\s?/\s?\d{1,40})?%?")
CHOICE = re.compile(r"\(?\b([A-J])\b[).:]?")
FRACTION = re.compile(r"\\d?frac\{(-?\d{1,40})\}\{(-?\d{1,40})\}")
NUMERIC = re.compile(r"([-+]?\d{1,40}(?:\.\d{1,40})?)(?:/(\d{1,40}))?")


def final_value(text: str) -> str | None:
    """The last `\\boxed{...}`, else what "the answer is" says, else a lone number or choice letter on the
    last line. None: the text has no value that could be compared."""
    if (inside := _boxed(text)) is not None:
        return inside
    stated = STATED.findall(text[-4000:])
    if stated:
        said = stated[-1]
        number = NUMBER.search(said)
        return number.group().strip() if number else _short(said)
    lines = [line.strip() for line in text[-4000:].splitlines() if line.strip()]
    return _lone(lines[-1][-400:]) if lines else None


def canonical(value: str) -> str:
    """One spelling for equal values: 42, 42.0, 84/2 and 1,000 by number, JSON by content, else by text."""
    text = value.strip().strip("$").strip()
    text = FRACTION.sub(r"\1/\2", text)
    if (number := as_number(text)) is not None:
        return str(number)
    if text[:1] in "[{" and (loaded := _json(text)) is not None:
        return loaded
    return " ".join(text.casefold().split()).strip(" .,:;!?\"'*")


def as_number(text: str) -> Fraction | None:
    """Exactly; None when it is no number, or one of absurd size."""
    plain = text.strip().rstrip(".").replace(" ", "")
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?", plain):
        plain = plain.replace(",", "")
    percent = plain.endswith("%")
    found = NUMERIC.fullmatch(plain.removesuffix("%"))
    if not found or len(plain) > 2 * MAX_DIGITS or (found[2] and not int(found[2])):
        return None
    number = Fraction(found[1]) / int(found[2] or 1)
    return number / 100 if percent else number


def _boxed(text: str) -> str | None:
    start = text.rfind(BOXED)
    if start < 0:
        return None
    depth, begin = 1, start + len(BOXED)
    for place in range(begin, min(len(text), begin + MAX_VALUE)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place].strip() or None
    return None


def _short(said: str) -> str | None:
    first = re.split(r"[.;,\n]", said, maxsplit=1)[0].strip(" *`\"'")
    return first if 0 < len(first) <= 60 else None


def _lone(line: str) -> str | None:
    numbers = NUMBER.findall(line)
    if len(numbers) == 1:
        return str(numbers[0]).strip()
    if len(line) <= 20 and (choice := CHOICE.fullmatch(line.strip(" *"))):
        return choice[1]
    return None


def _json(text: str) -> str | None:
    try:
        return json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False)
    except (ValueError, RecursionError):
        return None
