"""What the fairness bench makes of its figures."""

from typing import Any

import pytest

from bench import fairness, load


def measured(unloaded: float, loaded: float, step: float) -> dict[str, Any]:
    return {
        "unloaded": {"ttft_ms": {"p50": unloaded}},
        "loaded": {"ttft_ms": {"p50": loaded}, "step_found_ms": step},
    }


@pytest.mark.parametrize(("loaded", "holds"), [(249.0, True), (250.0, True), (251.0, False)])
def test_the_promise_is_twice_the_unloaded_figure_and_one_step(loaded: float, holds: bool) -> None:
    assert fairness.judged(measured(50, loaded, 100))["holds"] is holds


def test_a_long_step_is_found_as_often_as_it_is_long() -> None:
    assert fairness.found([0.1] * 9 + [0.9]) == pytest.approx(0.5)
    assert fairness.found([0.2] * 5) == pytest.approx(0.2)
    assert fairness.found([]) == 0


def test_failed_requests_are_counted_and_in_no_average() -> None:
    good = load.Sample(0.0, [0.1, 0.2, 0.4])
    bad = load.Sample(0.0, [9.0], error="http 503")

    told = fairness.figures([good, bad])

    assert (told["requests"], told["errors"]) == (2, ["http 503"])
    assert told["ttft_ms"]["p99"] == pytest.approx(100)
