"""How long a request wants to think, in each dialect that clients speak."""

import copy
from typing import Any

import pytest

from gateway.errors import InvalidRequest
from gateway.thinking.budget import NAMES
from gateway.thinking.effort import MEDIUM, OURS, Frame, amended, read

MESSAGES = {"messages": [{"role": "user", "content": "hi"}]}
FRAME = Frame()
BADLY = ["deep", "", "HIGH", "3", -1, 6, 2.0, True, [3], {"level": 3}]


def nested(path: str, value: Any) -> dict[str, Any]:
    """A body with the value at "a.b"."""
    name, _, inner = path.partition(".")
    return {name: {inner: value} if inner else value}


LEVELS = (
    "thinking_depth",
    "reasoning_effort",
    "reasoning.effort",
    "output_config.effort",
    "chat_template_kwargs.reasoning_effort",
)
SWITCHES = (
    "enable_thinking",
    "reasoning.enabled",
    "chat_template_kwargs.enable_thinking",
    "chat_template_kwargs.thinking",
)
BUDGETS = (
    "thinking_budget",
    "thinking_token_budget",
    "thinking.budget_tokens",
    "reasoning.max_tokens",
)


@pytest.mark.parametrize("path", LEVELS)
@pytest.mark.parametrize(
    ("value", "level"), [*NAMES.items(), *zip(range(6), range(6), strict=True)]
)
def test_a_level_is_a_name_or_a_number_under_each_name(
    path: str, value: str | int, level: int
) -> None:
    plan = read(nested(path, value), FRAME)

    assert (plan.level, plan.budget, plan.thinks) == (level, None, level > 0)


@pytest.mark.parametrize("path", SWITCHES)
@pytest.mark.parametrize(("value", "level"), [(True, 4), (False, 0)])
def test_a_switch_is_the_operators_default_or_off(path: str, value: bool, level: int) -> None:
    assert read(nested(path, value), Frame(default=4)).level == level


@pytest.mark.parametrize(
    ("value", "level"), [("enabled", 4), ("adaptive", 4), ("auto", 4), ("disabled", 0)]
)
def test_anthropics_thinking_is_a_switch(value: str, level: int) -> None:
    assert read({"thinking": {"type": value}}, Frame(default=4)).level == level


@pytest.mark.parametrize("path", BUDGETS)
def test_a_budget_is_exact_under_each_name(path: str) -> None:
    plan = read(nested(path, 500), FRAME)

    assert (plan.budget, plan.level, plan.thinks) == (500, MEDIUM, True)


@pytest.mark.parametrize("path", BUDGETS)
def test_a_budget_of_zero_is_off_and_minus_one_no_limit(path: str) -> None:
    off, free = read(nested(path, 0), FRAME), read(nested(path, -1), FRAME)

    assert (off.level, off.thinks) == (0, False)
    assert (free.budget, free.level) == (None, MEDIUM)


@pytest.mark.parametrize("value", ["auto", "default", "adaptive", None])
@pytest.mark.parametrize("path", LEVELS)
def test_an_effort_left_to_us_is_the_operators_default(path: str, value: str | None) -> None:
    assert read(nested(path, value), Frame(default=2)).level == 2


@pytest.mark.parametrize(
    ("body", "level", "budget"),
    [
        ({}, 3, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, 3, 2048),
        ({"enable_thinking": True, "thinking_budget": 50}, 3, 50),  # DashScope
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}, 4, None),
        ({"thinking_depth": 1, "reasoning_effort": "high"}, 1, None),
        ({"reasoning_effort": "low", "thinking_budget": 9000}, 2, 9000),
        ({"enable_thinking": True, "reasoning_effort": "high"}, 4, None),
        ({"reasoning_effort": "high", "enable_thinking": False}, 0, None),
        ({"reasoning_effort": "none", "thinking_budget": 50}, 0, 50),
        ({"thinking": {"type": "disabled", "budget_tokens": 50}}, 0, 50),
        ({"chat_template_kwargs": {"enable_thinking": False}, "thinking_depth": 5}, 0, None),
        ({"reasoning_effort": "high", "thinking_budget": 0}, 0, 0),
    ],
)
def test_off_beats_a_budget_and_a_budget_beats_a_level(
    body: dict[str, Any], level: int, budget: int | None
) -> None:
    plan = read(body, FRAME)

    assert (plan.level, plan.budget, plan.thinks) == (level, budget, level > 0)


@pytest.mark.parametrize(
    ("body", "level"),
    [
        ({}, 0),
        ({"enable_thinking": True}, 3),
        ({"thinking_budget": 9}, 3),
        ({"thinking_depth": 1}, 1),
    ],
)
def test_who_asks_for_a_thought_gets_one_where_the_default_is_none(
    body: dict[str, Any], level: int
) -> None:
    assert read(body, Frame(default=0)).level == level


def test_the_operators_ceiling_is_in_every_plan() -> None:
    assert read({"thinking_depth": "max"}, Frame(ceiling=700)).ceiling == 700


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
@pytest.mark.parametrize(("total", "thinks"), [(1, False), (31, False), (32, True), (None, True)])
def test_with_too_few_tokens_nothing_is_thought(name: str, total: int | None, thinks: bool) -> None:
    assert read({name: total, "thinking_depth": 5}, FRAME).thinks is thinks


@pytest.mark.parametrize(
    ("body", "hidden"),
    [
        ({}, False),
        ({"include_reasoning": False}, True),
        ({"include_reasoning": True}, False),
        ({"reasoning": {"exclude": True}}, True),
        ({"reasoning": {"exclude": False}}, False),
    ],
)
def test_a_hidden_thought_is_thought_all_the_same(body: dict[str, Any], hidden: bool) -> None:
    plan = read(body, FRAME)

    assert (plan.hidden, plan.thinks) == (hidden, True)


WRONG: dict[tuple[str, ...], list[Any]] = {
    LEVELS: BADLY,
    SWITCHES: ["yes", 1, 0, [], "true"],
    BUDGETS: ["500", -2, 1.5, True, [1]],
    ("thinking.type",): ["on", "", 1, True, []],
    ("reasoning", "thinking", "output_config", "chat_template_kwargs"): ["high", 1, True, []],
}


@pytest.mark.parametrize(
    ("path", "value"),
    [(path, value) for paths, bad in WRONG.items() for path in paths for value in bad],
)
def test_what_is_no_effort_is_refused_by_name(path: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read({"thinking_depth": 3, "thinking_budget": 5} | nested(path, value), FRAME)

    assert caught.value.param == path.split(".")[0]
    assert f"'{path}'" in caught.value.message


def chat(**fields: Any) -> dict[str, Any]:
    return MESSAGES | {"model": "m", "temperature": 0.2} | fields


def told(body: dict[str, Any]) -> dict[str, Any]:
    return amended(body, read(body, FRAME))


def test_what_only_we_read_is_gone_and_the_rest_is_as_it_was() -> None:
    body = chat(**dict.fromkeys(OURS, None), tools=[{"type": "function"}], user="u")

    assert told(body) == chat(
        tools=[{"type": "function"}], user="u", chat_template_kwargs={"enable_thinking": True}
    )


def test_the_callers_body_is_not_touched() -> None:
    body = chat(thinking_depth=2, reasoning={"effort": "low"}, chat_template_kwargs={"a": [1]})
    before = copy.deepcopy(body)

    told(body)

    assert body == before


@pytest.mark.parametrize(
    "wish",
    [
        {"enable_thinking": False},
        {"thinking_budget": 0},
        {"max_tokens": 8},
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": True}, "reasoning": {"effort": "none"}},
    ],
)
def test_the_template_is_told_whether_there_will_be_a_thought(wish: dict[str, Any]) -> None:
    assert told(chat(**wish))["chat_template_kwargs"] == {"enable_thinking": False}


def test_other_arguments_of_the_template_stay() -> None:
    kwargs = told(chat(chat_template_kwargs={"tools_in_user": True}))["chat_template_kwargs"]

    assert kwargs == {"tools_in_user": True, "enable_thinking": True}


def test_reasoning_is_openrouters_in_a_chat_and_openais_in_a_response() -> None:
    reasoning = {"effort": "low"}

    assert "reasoning" not in told(chat(reasoning=reasoning))
    assert told({"input": "hi", "reasoning": reasoning})["reasoning"] == reasoning


@pytest.mark.parametrize(
    ("given", "passed"),
    [("low", "low"), (4, "high"), (0, "none"), ("auto", "medium"), (None, None)],
)
def test_vllm_reads_an_effort_that_it_knows(given: str | int | None, passed: str | None) -> None:
    assert told(chat(reasoning_effort=given))["reasoning_effort"] == passed
