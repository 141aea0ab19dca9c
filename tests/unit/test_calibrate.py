"""`gateway calibrate` against a gateway of whose answers P(correct) is known. No port, no model."""

import asyncio
import json
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import calibrate
from gateway.calibrate import FAILED, REFUSED, STOPPED, Options, draw, run
from gateway.thinking.calibration import load

FINGERPRINT = "f" * 64
TASKS = 8


class Gateway:
    """Answers "question i" with i, rightly as often as its components say, and counts."""

    def __init__(self, informative: bool = True) -> None:
        self.informative = informative
        self.fingerprint: str | None = FINGERPRINT
        self.k = 5
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[httpx.Headers] = []
        self.trouble: list[httpx.Response | Exception] = []  # comes first
        self.in_flight = self.most = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.headers.append(request.headers)
        if request.url.path == "/health":
            model = {"name": "toy", "fingerprint": self.fingerprint}
            return httpx.Response(200, json={"models": [model]})
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        if self.trouble:
            trouble = self.trouble.pop(0)
            if isinstance(trouble, Exception):
                raise trouble
            return trouble
        body = json.loads(request.content)
        self.bodies.append(body)
        return httpx.Response(200, json=self.answer(int(body["question"].split()[-1])))

    def answer(self, i: int) -> dict[str, Any]:
        rng = random.Random(i)
        p = rng.uniform(0.05, 0.95)
        right = rng.random() < (p if self.informative else 0.5)
        components = {
            "answer_prob": round(p, 6),
            "answer_certainty": round(rng.random(), 6),
            "token_entropy": round(p, 6),
            "lowest_window": 0.2,
            "deepconf": {"k": self.k},
            "length_tokens": rng.randint(10, 200),
            "forced": False,
            "looped": False,
            "truncated": False,
            "failed_step_fraction": 0.0,
            "agreement": None,
            "p_true": None,
        }
        said = f"So it is this.\nThe answer is {i if right else i + 1}."
        return {"answer": said, "confidence": {"score": 0.5, "components": components}}


@pytest.fixture
def options(tmp_path: Path) -> Options:
    data = tmp_path / "questions.jsonl"
    write(data, 400)
    return Options(
        data=data,
        out=tmp_path / "calib.json",
        url="http://gateway",
        model=None,
        depth=1,
        max_tokens=64,
        concurrency=4,
        seed=1,
        api_key=None,
    )


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "RETRY_S", 0.0)


def write(path: Path, n: int, tasks: int = TASKS) -> None:
    rows = [
        {"id": str(i), "task": f"t{i % tasks}", "question": f"question {i}", "answer": str(i)}
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def ask(options: Options, gateway: Gateway) -> int:
    return run(options, httpx.MockTransport(gateway))


def report(options: Options) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(options.beside(".report.json").read_text())
    return loaded


def answers(options: Options) -> Path:
    return options.out.with_name("calib.json.answers.jsonl")


def test_an_informative_confidence_is_calibrated(options: Options) -> None:
    assert ask(options, Gateway()) == 0

    made, told = load(options.out), report(options)
    assert made.fits(FINGERPRINT, 5)
    assert made.n == 400
    assert "questions.jsonl" in made.dataset
    assert made.metrics == told["held_out"]
    assert told["calibrated"] is True
    assert told["refused"] is None
    assert told["held_out"]["auroc"]["low"] > 0.7
    assert told["base_rate"]["brier"] > told["held_out"]["brier"]["high"]
    assert [row["task"] for row in told["per_task"]] == [f"t{i}" for i in range(TASKS)]
    assert all(row["n"] == 50 for row in told["per_task"])
    assert sum(row["n"] for row in told["reliability"]) == 400
    assert not list(options.out.parent.glob("*.part"))


def test_an_empty_confidence_is_refused_and_the_report_says_why(options: Options) -> None:
    assert ask(options, Gateway(informative=False)) == REFUSED == 3

    assert not options.out.exists()
    assert report(options)["calibrated"] is False
    assert "AUROC" in report(options)["refused"]


def test_what_is_asked(options: Options) -> None:
    gateway = Gateway()

    ask(replace(options, api_key="secret", model="toy"), gateway)

    assert gateway.bodies[0] == {
        "question": "question 0",
        "thinking_depth": 1,
        "max_tokens": 64,
        "confidence": "logprobs",
        "seed": 1,
        "model": "toy",
    }
    assert all(headers["authorization"] == "Bearer secret" for headers in gateway.headers)
    assert 1 < gateway.most <= 4


def test_a_second_run_asks_nothing_again(options: Options) -> None:
    ask(options, Gateway())
    first, gateway = report(options), Gateway()

    assert ask(options, gateway) == 0

    assert gateway.bodies == []
    assert report(options)["held_out"] == first["held_out"]


@pytest.mark.parametrize("torn", [0, 40, 1])
def test_a_killed_run_goes_on_where_it_was(torn: int, options: Options) -> None:
    """Lines are whole, the last is half, or it only lacks its end."""
    ask(options, Gateway())
    lines = answers(options).read_text().splitlines(keepends=True)
    kept = "".join(lines[:100])
    answers(options).write_text(kept[: len(kept) - torn])
    gateway = Gateway()

    assert ask(options, gateway) == 0

    assert len(gateway.bodies) == (301 if torn == 40 else 300)
    again = Gateway()
    assert ask(options, again) == 0
    assert again.bodies == []


def test_what_was_answered_before_a_failure_is_kept(options: Options) -> None:
    gateway = Gateway()
    calm = gateway.answer

    def failing(i: int) -> dict[str, Any]:
        if i == 150:
            gateway.trouble = [httpx.Response(400, text="no such field")] * 99
        return calm(i)

    gateway.answer = failing  # type: ignore[method-assign]
    assert ask(options, gateway) == FAILED

    second = Gateway()
    assert ask(options, second) == 0
    assert 245 <= len(second.bodies) <= 250


@pytest.mark.parametrize("change", [{"depth": 2}, {"max_tokens": 65}, {"seed": 2}], ids=str)
def test_another_command_takes_no_old_answers(change: dict[str, Any], options: Options) -> None:
    ask(options, Gateway())
    gateway = Gateway()

    ask(replace(options, **change), gateway)

    assert len(gateway.bodies) == 400


def test_another_model_takes_no_old_answers(options: Options) -> None:
    ask(options, Gateway())
    gateway = Gateway()
    gateway.fingerprint = "e" * 64

    assert ask(options, gateway) == 0

    assert len(gateway.bodies) == 400
    assert load(options.out).fits("e" * 64, 5)


def test_a_corrected_gold_answer_is_judged_without_asking(options: Options) -> None:
    ask(options, Gateway())
    before, gateway = report(options)["held_out"]["right"], Gateway()
    first, *rest = options.data.read_text().splitlines()
    row = json.loads(first)
    wrong = "77" if "answer is 0" in answers(options).read_text() else "1"
    options.data.write_text("\n".join([json.dumps(row | {"answer": wrong}), *rest]))

    ask(options, gateway)

    assert gateway.bodies == []
    assert abs(report(options)["held_out"]["right"] - before) == 1


def test_a_busy_gateway_is_asked_again(options: Options) -> None:
    gateway = Gateway()
    gateway.trouble = [
        httpx.Response(503, headers={"retry-after": "1"}),
        httpx.Response(429),
        httpx.ConnectError("refused"),
    ]

    assert ask(options, gateway) == 0

    assert len(gateway.bodies) == 400


def test_a_gateway_that_stays_away_is_named(
    options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = Gateway()
    gateway.trouble = [httpx.ConnectError("refused") for _ in range(999)]

    assert ask(options, gateway) == FAILED

    said = capsys.readouterr().err
    assert "POST http://gateway/thinking: ConnectError refused" in said


def test_no_answer_is_left_out_and_not_asked_again(options: Options) -> None:
    gateway = Gateway()
    gateway.trouble = [httpx.Response(422, json={"code": "no_answer"})] * 3

    assert ask(options, gateway) == 0

    assert report(options)["n"] == 397
    assert report(options)["unanswered"] == 3
    second = Gateway()
    ask(options, second)
    assert second.bodies == []


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (httpx.Response(400, text="'seed' must"), "POST http://gateway/thinking: 400 'seed' must"),
        (httpx.Response(200, text="<html>"), "200 <html>"),
        (httpx.Response(200, json={"answer": "4", "confidence": None}), "confidence.components"),
    ],
    ids=["refused", "no JSON", "no confidence"],
)
def test_what_a_wrong_answer_of_the_gateway_says(
    response: httpx.Response, said: str, options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = Gateway()
    gateway.trouble = [response] * 4

    assert ask(options, gateway) == FAILED

    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fingerprint", "model", "said"),
    [
        (None, None, "http://gateway/health tells no fingerprint of toy"),
        ("f", "other", "the gateway serves toy, no other"),
    ],
)
def test_a_model_that_cannot_be_identified_is_not_calibrated(
    fingerprint: str | None,
    model: str | None,
    said: str,
    options: Options,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gateway = Gateway()
    gateway.fingerprint = fingerprint

    assert ask(replace(options, model=model), gateway) == FAILED

    assert said in capsys.readouterr().err


def test_answers_with_another_k_are_not_mixed(
    options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    write(options.data, 100)
    ask(options, Gateway())
    write(options.data, 300)
    gateway = Gateway()
    gateway.k = 20

    assert ask(options, gateway) == FAILED

    assert "[5, 20] log-probabilities per token" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("n", "tasks", "reason"),
    [
        (150, TASKS, "at least 200"),
        (250, 1, "1 kinds of 'task'"),
        (250, 3, "3 kinds of 'task'"),
    ],
)
def test_too_little_data_is_refused(n: int, tasks: int, reason: str, options: Options) -> None:
    write(options.data, n, tasks)

    assert ask(options, Gateway()) == REFUSED

    assert reason in report(options)["refused"]


def test_a_bad_question_file_is_named_by_its_line(
    options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    with options.data.open("a") as file:
        file.write("{}\n")

    assert ask(options, Gateway()) == FAILED

    assert "questions.jsonl:401: 'id' must be a text" in capsys.readouterr().err


def test_a_missing_question_file_is_named(
    options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(replace(options, data=Path("/nowhere.jsonl")), Gateway()) == FAILED

    assert "/nowhere.jsonl" in capsys.readouterr().err


def test_ctrl_c_keeps_the_answers(options: Options) -> None:
    gateway = Gateway()
    calm = gateway.answer

    def interrupted(i: int) -> dict[str, Any]:
        if i == 100:
            signal.raise_signal(signal.SIGINT)
        return calm(i)

    gateway.answer = interrupted  # type: ignore[method-assign]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs are deaf
    assert ask(options, gateway) == STOPPED
    signal.signal(signal.SIGINT, before)
    assert len(answers(options).read_text().splitlines()) >= 96


def test_without_matplotlib_the_rest_is_written_and_the_remedy_told(
    options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    assert ask(options, Gateway()) == 0

    assert "pip install 'thinking-gateway[calibrate]'" in capsys.readouterr().err
    assert not options.beside(".reliability.png").exists()


def test_nothing_held_out_is_nothing_to_draw(tmp_path: Path) -> None:
    assert draw([], tmp_path / "x.png") == []
    assert list(tmp_path.iterdir()) == []
