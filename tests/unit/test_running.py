"""Finding a request that thinks, by any of its names, and telling it to answer."""

from contextlib import ExitStack

import pytest

from gateway.errors import NotFound
from gateway.thinking.effort import PLAN, Plan
from gateway.thinking.run import ThinkingRun
from gateway.thinking.running import Running
from tests.runs import LONG, engine_with, finish, phases, run_on


def fresh() -> ThinkingRun:
    return run_on(engine_with(phases(think=LONG)))


@pytest.mark.parametrize("name", ["abc", "think-abc", "chatcmpl-abc", "resp_abc", "msg_abc"])
def test_a_request_is_found_by_its_id_and_by_that_in_its_body(name: str) -> None:
    running, run = Running(), fresh()

    with running.registered("abc", Plan(3, runs=[run])):
        assert running.answer_now(name) == "waiting"

    assert run.thought.interrupt == "answer_now"


@pytest.mark.parametrize("own", ["think-abc", "msg_1"])
def test_an_id_that_only_looks_prefixed_is_found_too(own: str) -> None:
    running = Running()

    with running.registered(own, Plan(3)):
        assert running.answer_now(own) == "waiting"


@pytest.mark.parametrize("name", ["abd", "", "xyz-abc", "ab", "think-", "think-think-abc"])
def test_who_is_not_running_is_not_found(name: str) -> None:
    running, run = Running(), fresh()

    with running.registered("abc", Plan(3, runs=[run])), pytest.raises(NotFound):
        running.answer_now(name)

    assert run.thought.interrupt is None


def test_a_request_that_failed_is_not_found_either() -> None:
    running = Running()
    with pytest.raises(ValueError, match="x"), running.registered("abc", Plan(3)):
        raise ValueError("x")

    with pytest.raises(NotFound):
        running.answer_now("abc")


def test_the_plan_holds_inside_and_no_longer() -> None:
    running, plan = Running(), Plan(3)

    with running.registered("abc", plan):
        assert PLAN.get() is plan

    assert PLAN.get() is None


def test_of_two_with_one_id_the_later_is_found_also_when_the_earlier_has_ended() -> None:
    running, first, second = Running(), fresh(), fresh()
    with ExitStack() as later:
        with ExitStack() as earlier:
            earlier.enter_context(running.registered("abc", Plan(3, runs=[first])))
            later.enter_context(running.registered("abc", Plan(3, runs=[second])))

        running.answer_now("abc")

    assert (first.thought.interrupt, second.thought.interrupt) == (None, "answer_now")


async def test_every_run_of_a_request_is_told_and_a_thinking_one_is_reported() -> None:
    done, _ = await finish(engine_with(phases(think=LONG)), budget=10)
    thinking, waiting = fresh(), fresh()
    pieces = thinking.pieces()
    await anext(pieces)
    running = Running()

    with running.registered("abc", Plan(3, runs=[done, waiting, thinking])):
        assert running.answer_now("abc") == "thinking"
    await pieces.aclose()

    assert {run.thought.interrupt for run in (done, waiting, thinking)} == {"answer_now"}
