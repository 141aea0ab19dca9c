"""The body of a `/thinking` answer, from what its samples came to."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gateway.routes.generate import usage
from gateway.thinking.calibration import Calibration
from gateway.thinking.checks import overall
from gateway.thinking.sample import Sample

if TYPE_CHECKING:
    from gateway.routes.thinking import ThinkRequest

Judge = tuple[Calibration | None, float | None]  # how confidence is scaled; how far samples agree


def whole(
    request: "ThinkRequest", samples: list[Sample], chosen: Sample, judge: Judge
) -> dict[str, Any]:
    """Everything but id, model and times."""
    out = chosen.run.outcome
    body: dict[str, Any] = {
        "status": chosen.status,
        "answer": out.answer,
        "answer_source": out.answer_source,
        "reasoning": shown_reasoning(chosen, request.include_reasoning),
        "budget": asdict(out.budget),
        "finish_reason": out.finish_reason,
        "usage": _usage(samples),
    }
    if chosen.status == "incomplete":
        body["incomplete_details"] = {"reason": "max_output_tokens"}
    if request.validate_:
        checks = chosen.checks(chosen.steps(), request.response_format)
        rows = [asdict(check) for check in checks]
        body["validation"] = {"status": overall(checks), "checks": rows}
    confidence = chosen.confidence(*judge) if request.confidence != "off" else None
    if confidence is not None:
        body["confidence"] = asdict(confidence)
    if len(samples) > 1:
        body["samples"] = [sample_row(sample) for sample in samples]
    if request.early_exit != "off":
        body["early_exit"] = {
            "mode": request.early_exit,
            "fired": out.end_reason == "early_exit",
            "trials": out.probe_trials,
        }
    return body


def shown_reasoning(sample: Sample, show: bool | str) -> dict[str, Any]:
    """How the thought went; its text and steps only as far as they are to be shown."""
    out = sample.run.outcome
    told: dict[str, Any] = {}
    if show in (True, "text"):
        told["text"] = out.reasoning
    if show in (True, "steps"):
        rows = [asdict(step) for step in sample.steps()]
        told["steps"] = rows if show is True or show == "steps" else []
    return told | {
        "end_reason": out.end_reason,
        "forced": out.forced,
        "tokens": out.reasoning_tokens,
    }


def sample_row(sample: Sample) -> dict[str, Any]:
    out = sample.run.outcome
    confidence = sample.confidence(None)
    return {
        "index": sample.index,
        "answer": out.answer or None,
        "value": sample.value,
        "confidence": None if confidence is None else confidence.score,
        "status": sample.status,
        "tokens": sample.tokens,
    }


def _usage(samples: list[Sample]) -> dict[str, Any]:
    """The prompt counts once; what was drawn counts for every sample."""
    outs = [sample.run.outcome for sample in samples]
    completion = sum(sample.tokens for sample in samples)
    counted = usage(outs[0].prompt_tokens, completion, outs[0].cached_tokens)
    named = {
        "answer_tokens": sum(out.answer_tokens for out in outs),
        "forced_tokens": sum(out.forced_tokens for out in outs),
        "probe_tokens": sum(out.probe_tokens for out in outs),
    }
    reasoning = completion - sum(named.values())
    counted["completion_tokens_details"] = {"reasoning_tokens": reasoning, **named}
    return counted
