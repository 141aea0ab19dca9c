"""A corpus of malformed bodies: each is refused within two seconds, everybody else is served meanwhile."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests import malformed
from tests.malformed import CHAT, GOOD, JSON, LEGAL, Case
from tests.service.server import DEMO, PATIENCE_S, Gateway, wait_for

# What the log says of these requests can be told from what it says of the bystander's.
WHOSE = {"x-request-id": "malformed-body"}
PROMISED_S = 2
SPIN_S = 0.2
TICK_S = 0.01
BETWEEN_S = 0.1  # of the bystander's calls: it watches, it is no load


class Bystander(threading.Thread):
    """Asks again and again; `answers` has the status of each."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.answers: list[int] = []
        self.done = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=PATIENCE_S) as http:
            while not self.done.wait(BETWEEN_S):
                self.answers.append(http.post(CHAT, json=GOOD[CHAT]).status_code)


@pytest.fixture(scope="module")
def bystander(gateway: Gateway) -> Iterator[Bystander]:
    other = Bystander(gateway.url)
    other.start()
    yield other
    other.done.set()
    other.join(PATIENCE_S)


class Ticker(threading.Thread):
    """Wants a core every 10 ms; `lost_s`: for how long it got none, as when the machine stands still."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.lost_s = 0.0
        self.done = threading.Event()

    def run(self) -> None:
        at = time.monotonic()
        while not self.done.wait(TICK_S):
            now = time.monotonic()
            self.lost_s += max(0.0, now - at - 2 * TICK_S)
            at = now


@pytest.fixture(scope="module")
def ticker() -> Iterator[Ticker]:
    ticker = Ticker()
    ticker.start()
    yield ticker
    ticker.done.set()
    ticker.join(PATIENCE_S)


def slowdown() -> float:
    """How many times longer work takes now than on a machine that does nothing else."""
    began, used = time.monotonic(), time.process_time()
    while time.process_time() - used < SPIN_S:
        pass
    return (time.monotonic() - began) / SPIN_S


@pytest.mark.parametrize("case", list(malformed.cases()), ids=str)
def test_what_is_malformed_is_refused_soon(
    http: httpx.Client, bystander: Bystander, ticker: Ticker, case: Case
) -> None:
    began, lost = time.monotonic(), ticker.lost_s
    response = http.post(case.path, content=case.content, headers=case.headers | WHOSE)
    took, lost = time.monotonic() - began, ticker.lost_s - lost

    assert took < PROMISED_S or took - lost < PROMISED_S * slowdown()
    assert 400 <= response.status_code < 500, response.text[:500]
    assert response.headers["x-request-id"]
    assert "Traceback" not in response.text


def test_nobody_has_to_read_a_stack_for_all_that(gateway: Gateway, http: httpx.Client) -> None:
    http.post("/v1/messages", json=GOOD["/v1/messages"] | {"top_p": 0}, headers=WHOSE)
    lines = gateway.log.read_text(errors="replace").splitlines()
    of_these = [line for line in lines if WHOSE["x-request-id"] in line]

    assert of_these
    assert [line for line in of_these if "Traceback" in line] == []


@pytest.mark.parametrize("why", LEGAL)
def test_what_only_looks_malformed_is_served(http: httpx.Client, why: str) -> None:
    path, content = LEGAL[why]

    response = http.post(path, content=content, headers=JSON)

    assert response.status_code == 200, response.text


def test_the_last_of_two_equal_names_is_the_one_that_is_bounded(http: httpx.Client) -> None:
    body = b'{"messages": [{"role": "user", "content": "Hi"}], "n": 1, "n": 5000}'

    response = http.post(CHAT, content=body, headers=JSON)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "n"


@pytest.mark.parametrize("path", malformed.DRAWING)
def test_a_good_body_is_answered_after_all_that(http: httpx.Client, path: str) -> None:
    response = http.post(path, json=GOOD[path])

    assert response.status_code == 200, response.text


def test_everybody_else_was_served_meanwhile(bystander: Bystander) -> None:
    wait_for(lambda: bystander.answers, PATIENCE_S, "an answer")
    bystander.done.set()
    bystander.join(PATIENCE_S)

    assert not bystander.is_alive()
    assert set(bystander.answers) == {200}


def test_the_event_loop_is_free_while_large_prompts_are_tokenised(gateway: Gateway) -> None:
    """vLLM tokenises in a thread; only what is surely too long for the context is refused before it."""
    large = {"model": DEMO, "prompt": "word and " * 60_000, "max_tokens": 4}

    def ask() -> int:
        return httpx.post(f"{gateway.url}/generate", json=large, timeout=PATIENCE_S).status_code

    meanwhile = 0
    with (
        ThreadPoolExecutor(8) as callers,
        httpx.Client(base_url=gateway.url, timeout=PATIENCE_S) as http,
    ):
        asked = [callers.submit(ask) for _ in range(8)]
        while not all(each.done() for each in asked):
            assert http.get("/health/live").status_code == 200
            meanwhile += sum(not each.done() for each in asked) > 0

    assert {each.result() for each in asked} == {400}
    assert meanwhile > 0
