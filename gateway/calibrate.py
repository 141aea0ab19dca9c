"""The work behind `gateway calibrate`: ask known questions, judge the answers, fit, measure, write.

Beside `--out` it writes `<out>.answers.jsonl` (every answer as it comes: a run that was killed goes on
where it was), `<out stem>.report.json` and `<out stem>.reliability.png`.
"""

import asyncio
import hashlib
import importlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from gateway.questions import Question, QuestionsError, is_right, read_questions
from gateway.thinking.calibration import (
    FEATURES,
    Calibration,
    Floats,
    Weights,
    fit,
    held_out,
    measure,
    refusal,
    reliability,
)
from gateway.thinking.confidence import by_formula, features

FAILED, REFUSED, STOPPED = 1, 3, 130  # exit statuses
ANSWER_S = 600.0  # a long thought on a CPU
ATTEMPTS, RETRY_S, MAX_RETRY_S = 6, 1.0, 30.0
TRY_AGAIN = (429, 503)
NO_ANSWER = 422  # nothing that can be seen came: the answer is wrong, and has no confidence
PLOTTER = "pip install 'thinking-gateway[calibrate]'"


class CalibrateFailed(Exception):
    """The message says what to change."""


@dataclass(frozen=True, slots=True)
class Options:
    """Of the command; the order is that of its parameters."""

    data: Path
    out: Path
    url: str
    model: str | None  # None: the gateway's first
    depth: int
    max_tokens: int
    concurrency: int
    seed: int
    api_key: str | None

    def beside(self, ending: str) -> Path:
        """`calib.json` -> `calib.report.json`."""
        return self.out.with_name(f"{self.out.stem}{ending}")


@dataclass(frozen=True, slots=True)
class Judged:
    """Answered questions as numbers; every field has n entries."""

    x: Floats  # shape (n, n_features)
    right: Floats  # 0 or 1
    formula: Floats  # the score without a calibration
    tasks: list[str]
    k: int  # log-probabilities per token, the same for all


def run(options: Options, transport: httpx.AsyncBaseTransport | None = None) -> int:
    """The exit status: 0 written, 1 failed, 3 refused (the report says why), 130 stopped by Ctrl-C.

    `transport` is for tests; None is the network.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        return _run(options, transport, console)
    except KeyboardInterrupt:
        console.print("gateway: stopped; the same command goes on from here")
        return STOPPED
    except (CalibrateFailed, QuestionsError, OSError) as error:
        console.print(f"[bold red]gateway[/]: {escape(str(error))}")
        return FAILED


def _run(options: Options, transport: httpx.AsyncBaseTransport | None, console: Console) -> int:
    questions = read_questions(options.data)
    with Answers(options.out.with_name(f"{options.out.name}.answers.jsonl")) as answers:
        asker = Asker(options, answers, transport)
        asyncio.run(asker.ask(questions, console))
        rows = [(question, answers.rows[asker.key(question)]) for question in questions]
    judged = judge_all(rows)
    report, calibration = evaluate(judged, options, asker.fingerprint)
    report["unanswered"] = len(questions) - report["n"]
    whole = json.dumps(_plain(report), indent=1, ensure_ascii=False)
    _write(options.beside(".report.json"), f"{whole}\n".encode())
    drawn = draw(report.get("reliability", []), options.beside(".reliability.png"))
    for line in [*_told(report), *drawn]:
        console.print(escape(line))
    if calibration is None:
        console.print(f"[bold red]refused[/]: {escape(report['refused'])}")
        return REFUSED
    calibration.save(options.out)
    console.print(f"[bold green]calibrated[/]: {escape(str(options.out))}")
    return 0


class Answers:
    """The answers so far, by key; each is in the file before the next question is asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        torn = False
        if self.path.exists():
            text = self.path.read_text(encoding="utf-8", errors="replace")
            self.rows = {row["key"]: row for row in _rows(text)}
            torn = not text.endswith("\n") and text != ""
        self._file = self.path.open("a", encoding="utf-8")
        if torn:  # or the next answer would be lost with the half one
            self._file.write("\n")
        return self

    def add(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()  # to the system: a killed process loses nothing
        self.rows[row["key"]] = row

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def _rows(text: str) -> Iterator[dict[str, Any]]:
    """Whole lines; the one that a killed run left half is asked again."""
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("key"), str):
            yield row


class Asker:
    """Asks what has no answer yet, some questions at once."""

    def __init__(
        self, options: Options, answers: Answers, transport: httpx.AsyncBaseTransport | None
    ) -> None:
        self.options = options
        self.answers = answers
        self.fingerprint = ""
        headers = {"authorization": f"Bearer {options.api_key}"} if options.api_key else {}
        timeout = httpx.Timeout(ANSWER_S, connect=10)
        self.client = httpx.AsyncClient(
            base_url=options.url, headers=headers, timeout=timeout, transport=transport
        )

    def key(self, question: Question) -> str:
        """Of everything that the answer depends on: a changed command does not take old answers."""
        options = self.options
        parts = [self.fingerprint, options.depth, options.max_tokens, options.seed]
        return hashlib.sha256(json.dumps([*parts, question.question]).encode()).hexdigest()

    async def ask(self, questions: Sequence[Question], console: Console) -> None:
        """Raises CalibrateFailed; what was answered until then is kept."""
        async with self.client:
            self.fingerprint = await self._served()
            todo = [
                question for question in questions if self.key(question) not in self.answers.rows
            ]
            with Progress(console=console) as progress:
                done = len(questions) - len(todo)
                bar = progress.add_task("asking", total=len(questions), completed=done)
                try:
                    async with asyncio.TaskGroup() as group:
                        left = iter(todo)
                        for _ in range(max(1, self.options.concurrency)):
                            group.create_task(self._work(left, lambda: progress.advance(bar)))
                except ExceptionGroup as group_error:
                    raise group_error.exceptions[0] from None

    async def _work(self, left: Iterator[Question], advance: Any) -> None:
        for question in left:
            self.answers.add(await self._answer(question))
            advance()

    async def _served(self) -> str:
        """The fingerprint of the model that will answer."""
        told = await self._send("GET", "/health", None, attempts=1) or {}
        models = {row.get("name"): row for row in told.get("models", [])}
        name = self.options.model or next(iter(models), None)
        if name not in models:
            raise CalibrateFailed(
                f"the gateway serves {', '.join(models) or 'no model'}, no {name}"
            )
        if not (fingerprint := models[name].get("fingerprint")):
            raise CalibrateFailed(f"{self.options.url}/health tells no fingerprint of {name}")
        return str(fingerprint)

    async def _answer(self, question: Question) -> dict[str, Any]:
        options = self.options
        body: dict[str, Any] = {
            "question": question.question,
            "thinking_depth": options.depth,
            "max_tokens": options.max_tokens,
            "confidence": "logprobs",
            "seed": options.seed,
        }
        if options.model is not None:
            body["model"] = options.model
        row = {"key": self.key(question), "id": question.id}
        told = await self._send("POST", "/thinking", body, ATTEMPTS)
        if told is None:
            return row | {"answer": "", "components": None}
        components = (told.get("confidence") or {}).get("components")
        if components is None:
            raise CalibrateFailed("the gateway's answers have no 'confidence.components'")
        return row | {"answer": told["answer"], "components": components}

    async def _send(
        self, method: str, path: str, body: Any, attempts: int
    ) -> dict[str, Any] | None:
        """Asks again while the gateway is busy or away. None: the model gave no answer."""
        why = ""
        for attempt in range(attempts):
            if attempt:
                await asyncio.sleep(min(MAX_RETRY_S, RETRY_S * 2 ** (attempt - 1)))
            try:
                response = await self.client.request(method, path, json=body)
            except httpx.TransportError as error:
                why = f"{type(error).__name__} {error}".strip()
                continue
            if response.status_code == NO_ANSWER:
                return None
            if response.is_success and (told := _object(response)) is not None:
                return told
            why = f"{response.status_code} {response.text[:300]}"
            if response.status_code not in TRY_AGAIN:
                break
        raise CalibrateFailed(f"{method} {self.options.url}{path}: {why}")


def _object(response: httpx.Response) -> dict[str, Any] | None:
    try:
        told = response.json()
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


def judge_all(rows: Sequence[tuple[Question, Mapping[str, Any]]]) -> Judged:
    """Answers without confidence are left out: there is nothing to calibrate.

    Raises:
        CalibrateFailed: none is left, or they were read with different k.
    """
    known = [(question, row) for question, row in rows if row["components"] is not None]
    depths = {row["components"]["deepconf"]["k"] for _, row in known}
    if len(depths) != 1:
        raise CalibrateFailed(
            f"answers with {sorted(depths)} log-probabilities per token; delete the answers and ask again"
            if depths
            else "no question was answered with a confidence"
        )
    measured = [row["components"] for _, row in known]
    right = [is_right(row["answer"], question.answer) for question, row in known]
    return Judged(
        x=np.array([features(one) for one in measured]),
        right=np.array(right, dtype=np.float64),
        formula=np.array([by_formula(one) for one in measured]),
        tasks=[question.task for question, _ in known],
        k=depths.pop(),
    )


def evaluate(
    judged: Judged, options: Options, fingerprint: str
) -> tuple[dict[str, Any], Calibration | None]:
    """The report, and the calibration unless it is refused."""
    n, tasks = len(judged.right), sorted(set(judged.tasks))
    metrics: dict[str, Any] = {"n": n, "right": int(judged.right.sum()), "tasks": len(tasks)}
    digest = hashlib.sha256(options.data.read_bytes()).hexdigest()[:12]
    report: dict[str, Any] = {
        "fingerprint": fingerprint,
        "k": judged.k,
        "dataset": f"{options.data.name} (sha256 {digest}), {len(tasks)} tasks, thinking_depth "
        f"{options.depth}, max_tokens {options.max_tokens}, seed {options.seed}",
        "n": n,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if len(tasks) > 1:
        p = held_out(judged.x, judged.right, judged.tasks)
        metrics |= measure(p, judged.right, options.seed)
        report |= _figures(judged, p, options.seed)
        report["reliability"] = reliability(p, judged.right)
    weights = fit(judged.x, judged.right)
    report |= {"held_out": metrics, "weights": dict(zip(FEATURES, weights.weights, strict=True))}
    report["refused"] = refusal(metrics)
    report["calibrated"] = report["refused"] is None
    made = _calibration(weights, report) if report["calibrated"] else None
    return report, made


def _figures(judged: Judged, p: Floats, seed: int) -> dict[str, Any]:
    """What the held-out figures are to be compared with."""
    base = float(judged.right.mean())
    names = np.array(judged.tasks)
    tasks = []
    for task in sorted(set(judged.tasks)):
        of_it = names == task
        told = measure(p[of_it], judged.right[of_it], seed)
        shown = {key: told[key] for key in ("n", "right", "accuracy", "auroc", "brier")}
        tasks.append({"task": task, "mean_p": float(p[of_it].mean()), **shown})
    return {
        "formula": measure(judged.formula, judged.right, seed),
        "base_rate": {"p": base, "auroc": 0.5, "ece": 0.0, "brier": base * (1 - base)},
        "per_task": tasks,
    }


def _calibration(weights: Weights, report: Mapping[str, Any]) -> Calibration:
    return Calibration(
        weights=weights.weights,
        bias=weights.bias,
        mean=weights.mean,
        scale=weights.scale,
        fingerprint=report["fingerprint"],
        k=report["k"],
        metrics=_plain(report["held_out"]),
        dataset=report["dataset"],
        n=report["n"],
        created=report["created"],
    )


def draw(rows: Sequence[Mapping[str, float]], path: Path) -> list[str]:
    """The reliability diagram. Returns what to tell when there is none."""
    if not rows:
        return []
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError:
        return [f"no reliability diagram: it needs matplotlib; {PLOTTER}"]
    figure = figures.Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, label="perfect")
    said, seen = [row["p"] for row in rows], [row["accuracy"] for row in rows]
    # Two standard errors: how far chance alone moves a point.
    bars = [2 * math.sqrt(y * (1 - y) / row["n"]) for y, row in zip(seen, rows, strict=True)]
    axes.errorbar(said, seen, yerr=bars, fmt="o", label="held-out questions")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share of right answers")
    axes.legend(loc="upper left")
    part = path.with_name(f"{path.name}.part")
    figure.savefig(part, format="png", dpi=150)
    part.replace(path)
    return [f"reliability diagram: {path}"]


def _told(report: Mapping[str, Any]) -> list[str]:
    metrics = report["held_out"]
    lines = [
        f"{metrics['right']} of {metrics['n']} right, {metrics['tasks']} tasks, "
        f"{report['unanswered']} without an answer"
    ]
    for key in ("auroc", "ece", "brier", "brier_base", "selective_accuracy"):
        if key in metrics:
            value, low, high = (metrics[key][part] for part in ("value", "low", "high"))
            lines.append(f"  {key} {value:.3f} [{low:.3f}, {high:.3f}]")
    return lines


def _plain(value: Any) -> Any:
    """Rounded, and null for NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    part.replace(path)
