"""All checks, one after the other, so that what fails is not the neighbour's fault."""

import time
from collections.abc import Awaitable, Callable
from functools import partial

import httpx

from gateway.validate.probes import OTHERS, ROUTES, Flaw
from gateway.validate.refusals import refusals
from gateway.validate.report import Outcome, Report
from gateway.validate.speed import Plan, crowd, measure
from gateway.validate.target import Target

Check = Callable[[], Awaitable[str]]
Tell = Callable[[str, float], None]
"""Called with what is looked at and how far it is, 0 to 1."""


async def run(target: Target, plan: Plan | None, crowd_size: int, tell: Tell) -> Report:
    """Every route, every refusal, many at once, and with a plan the benchmark."""
    report = Report(str(target.client.base_url).rstrip("/"), target.model, target.key is not None)
    checks = _checks(target, crowd_size)
    for number, (group, name, check) in enumerate(checks):
        tell(f"{group}: {name}", number / (len(checks) + 1))
        report.outcomes.append(await _outcome(group, name, check))
    if plan is not None:
        tell("benchmark", len(checks) / (len(checks) + 1))

        async def benchmark() -> str:
            report.speed = await measure(target, plan)
            return f"{report.speed.tokens_per_second} tokens/s"

        report.outcomes.append(await _outcome("load", "benchmark", benchmark))
    tell("done", 1.0)
    return report


def _checks(target: Target, crowd_size: int) -> list[tuple[str, str, Check]]:
    checks: list[tuple[str, str, Check]] = []
    for route in ROUTES:
        checks.append(("route", route.name, partial(route.plain, target)))
        if route.piece is not None:
            checks.append(("stream", route.name, partial(route.streamed, target)))
    for name, check in OTHERS:
        checks.append(("route", name, partial(check, target)))
    for refusal in refusals(target):
        checks.append(("refusal", refusal.name, partial(refusal.check, target)))
    checks.append(("load", "many at once", partial(crowd, target, crowd_size)))
    return checks


async def _outcome(group: str, name: str, check: Check) -> Outcome:
    began = time.perf_counter()
    try:
        passed, told = True, await check()
    except Flaw as flaw:
        passed, told = False, str(flaw)
    except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
        # A body of another form than documented is a finding, not a crash of ours.
        passed, told = False, f"{type(error).__name__}: {error}"
    return Outcome(group, name, passed, told, round(time.perf_counter() - began, 3))
