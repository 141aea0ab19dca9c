"""Who is next, and whether there is room: pure, no clock, no engine."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from gateway.engines.types import Limits
from gateway.policy.line import LATELY_S, OUTPUT_WEIGHT, Line, Ticket
from gateway.policy.places import Places, Verdict
from gateway.policy.tenant import Priority
from tests.drawn import Drawn

ROOM = Limits(max_model_len=4096, max_num_seqs=8, max_batched_tokens=1000)


def ticket(
    tenant: str, prompt: int = 10, weight: float = 1.0, priority: Priority = "normal", n: int = 1
) -> Ticket:
    return Ticket(tenant, weight, priority, prompt, n)


def arrive(line: Line, *tickets: Ticket, now: float = 0.0) -> None:
    for each in tickets:
        line.arrive(each, now)
        line.wait(each)


def run(line: Line, each: Ticket) -> None:
    line.leave(each)
    line.run(each)


@dataclass
class Engine:
    """Runs up to `places` tickets and draws a token of each per step, as vLLM does."""

    line: Line
    places: int
    weights: dict[str, float]
    dice: random.Random
    running: list[tuple[Ticket, Drawn, int]]  # and how many tokens it will draw

    def step(self) -> None:
        while len(self.running) < self.places:
            for name, weight in self.weights.items():  # a backlog that never ends
                if not self.line.account(name).queued:
                    arrive(self.line, ticket(name, self.dice.randrange(1, 200), weight))
            self.line.settle()
            first = self.line.heads()[0]
            run(self.line, first)
            drawn = Drawn(self.dice.randrange(1, 200))
            first.drawn.append(drawn)
            self.running.append((first, drawn, self.dice.randrange(1, 100)))
        for entry in list(self.running):
            each, drawn, length = entry
            drawn.output += 1
            if drawn.output >= length:
                self.line.end(each, 0.0)
                self.running.remove(entry)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weights", [(1, 1), (1, 2), (1, 1, 1), (1, 2, 5), (0.5, 0.5, 4)], ids=str)
def test_tenants_with_a_backlog_get_their_weights_share_of_the_work(
    weights: tuple[float, ...], seed: int
) -> None:
    named = {f"t{number}": weight for number, weight in enumerate(weights)}
    line = Line()
    engine = Engine(line, 6, named, random.Random(seed), [])

    for _ in range(6000):
        engine.step()
    line.settle()

    work = {name: line.account(name).counter * weight for name, weight in named.items()}
    for name, weight in named.items():
        share = work[name] / sum(work.values())
        assert share == pytest.approx(weight / sum(weights), rel=0.05), work


def test_what_was_drawn_is_charged_and_a_wrong_estimate_is_corrected() -> None:
    line = Line()
    one = ticket("a", prompt=500)
    arrive(line, one)

    run(line, one)
    assert line.account("a").counter == 500
    one.drawn.append(Drawn(prompt=100, cached=40, output=7))
    line.end(one, 1.0)

    assert line.account("a").counter == 60 + 7 * OUTPUT_WEIGHT
    assert not line.account("a").running


def test_a_request_that_reached_no_engine_costs_nothing() -> None:
    line = Line()
    one = ticket("a", prompt=500)
    arrive(line, one)
    run(line, one)

    line.end(one, 1.0)

    assert line.account("a").counter == 0


def test_a_newcomer_is_lifted_to_the_least_of_those_who_are_there() -> None:
    line = Line()
    for name, prompt in (("a", 300), ("b", 200)):
        one = ticket(name, prompt)
        one.drawn.append(Drawn(100))
        arrive(line, one)
        run(line, one)
    line.account("old").counter = 1000.0

    arrive(line, ticket("new"), ticket("old"))

    assert (
        line.account("new").counter == 100
    )  # what a has had; the rest of its charge is an estimate
    assert line.account("old").counter == 1000


def test_nobody_saves_up_while_nobody_is_there() -> None:
    line = Line()
    one = ticket("a")
    arrive(line, one)
    run(line, one)
    one.drawn.append(Drawn(prompt=10, output=100))
    line.end(one, 1.0)

    arrive(line, ticket("b"))

    assert line.account("b").counter == line.account("a").counter


def test_a_better_class_goes_first_whatever_the_counters_say() -> None:
    line = Line()
    line.account("a").counter = 1e6
    arrive(line, ticket("b", priority="batch"), ticket("c"), ticket("a", priority="interactive"))
    order = []

    while line.heads():
        first = line.heads()[0]
        order.append(first.tenant)
        run(line, first)

    assert order == ["a", "c", "b"]


def test_without_fairness_the_first_to_come_is_the_only_one_who_is_next() -> None:
    line = Line()
    line.fair = False
    arrive(line, ticket("a", priority="batch"), ticket("b", priority="interactive"), ticket("a"))

    assert [each.priority for each in line.heads()] == ["batch"]


def test_tenants_count_as_several_for_a_while_after_their_last_request() -> None:
    line = Line()
    arrive(line, ticket("a"), ticket("a"), now=0.0)
    assert not line.several(0.0)

    arrive(line, ticket("b"), now=10.0)

    assert line.several(10.0)
    assert line.several(LATELY_S)
    assert not line.several(LATELY_S + 1)


def admit(line: Line, places: Places, each: Ticket, read: bool = False) -> Ticket:
    arrive(line, each)
    run(line, each)
    places.take(each)
    if read:
        each.drawn.append(Drawn(each.prompt, output=1))
    return each


def verdict(line: Line, places: Places, each: Ticket, room: Limits = ROOM) -> Verdict:
    several = len({one.tenant for one in [*places.running, each]}) > 1
    return places.verdict(each, room, line, several)


def test_a_tenant_alone_may_fill_every_place() -> None:
    line, places = Line(), Places()

    for _ in range(ROOM.max_num_seqs):
        assert verdict(line, places, ticket("a")) is Verdict.FITS
        admit(line, places, ticket("a"), read=True)

    assert verdict(line, places, ticket("a")) is Verdict.FULL


def test_the_completions_of_a_request_count_each() -> None:
    line, places = Line(), Places()
    admit(line, places, ticket("a", n=6), read=True)

    assert verdict(line, places, ticket("a", n=2)) is Verdict.FITS
    assert verdict(line, places, ticket("a", n=3)) is Verdict.FULL


def test_one_larger_than_the_engine_runs_alone() -> None:
    line, places = Line(), Places()
    large = ticket("a", prompt=9000, n=64)

    assert verdict(line, places, large) is Verdict.FITS
    one = admit(line, places, ticket("b"), read=True)
    assert verdict(line, places, large) is Verdict.FULL
    places.give_back(one)
    assert verdict(line, places, large) is Verdict.FITS


def test_prompts_being_read_are_bounded_and_a_newcomer_is_not_kept_out() -> None:
    line, places = Line(), Places()
    first = admit(line, places, ticket("flood", 900))
    assert verdict(line, places, ticket("flood", 900)) is Verdict.FITS  # alone: a step ahead
    admit(line, places, ticket("flood", 900))
    assert verdict(line, places, ticket("flood", 900)) is Verdict.READING

    light = ticket("light", 50)

    assert verdict(line, places, light) is Verdict.FITS
    admit(line, places, light)
    first.drawn.append(Drawn(900, output=1))
    assert verdict(line, places, ticket("flood", 150)) is Verdict.READING  # one step, of several
    assert verdict(line, places, ticket("flood", 40)) is Verdict.FITS


def test_a_long_prompt_does_not_start_beside_that_of_somebody_who_used_less() -> None:
    line, places = Line(), Places()
    admit(line, places, ticket("flood", 900), read=True)
    light = admit(line, places, ticket("light", 50))
    line.account("light").counter = 0

    assert verdict(line, places, ticket("flood", 400)) is Verdict.READING
    light.drawn.append(Drawn(50, output=1))

    assert verdict(line, places, ticket("flood", 400)) is Verdict.FITS


def test_the_last_place_and_the_last_of_the_cache_are_not_for_whoever_has_most() -> None:
    line, places = Line(), Places()
    admit(line, places, ticket("light"), read=True)
    for _ in range(6):
        admit(line, places, ticket("flood"), read=True)

    assert verdict(line, places, ticket("flood")) is Verdict.HELD
    assert verdict(line, places, ticket("light")) is Verdict.FITS
    tight = Limits(4096, 100, 1000, cache_tokens=90)
    assert verdict(line, places, ticket("flood", 5), tight) is Verdict.HELD
    assert verdict(line, places, ticket("light", 5), tight) is Verdict.FITS
    assert verdict(line, places, ticket("light", 50), tight) is Verdict.FULL


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes_the_books_agree(seed: int) -> None:
    dice = random.Random(seed)
    line, places = Line(), Places()
    queued: list[Ticket] = []
    running: list[Ticket] = []
    for now in range(400):
        match dice.randrange(4):
            case 0:
                queued.append(ticket(dice.choice("abc"), dice.randrange(1, 500)))
                arrive(line, queued[-1], now=now)
            case 1 if queued:
                line.leave(queued.pop(dice.randrange(len(queued))))
            case 2 if running:
                gone = running.pop(dice.randrange(len(running)))
                places.give_back(gone)
                line.end(gone, now)
            case 3 if queued and (heads := line.heads()):
                queued.remove(heads[0])
                run(line, heads[0])
                places.take(heads[0])
                running.append(heads[0])
                heads[0].drawn.append(Drawn(5, output=dice.randrange(3)))
        assert len(line) == len(queued)
        assert places.sequences == len(places.running) == len(running)
        alive = Counter(each.tenant for each in running)
        assert {name: len(line.account(name).running) for name in "abc"} == {
            name: alive[name] for name in "abc"
        }
        assert all(account.counter >= 0 for account in line.accounts.values())
