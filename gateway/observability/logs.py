"""What is logged, how, and a line for each request. docs/observability.md tells operators."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from gateway.asgi import Exchange
from gateway.observability.lines import Kind, handler, identity
from gateway.observability.outcome import UNMATCHED, error_of, outcome_of
from gateway.observability.requests import first_token_s
from gateway.policy.keys import PUBLIC
from gateway.settings import Settings

access = logging.getLogger("gateway.access")

# The level is that of our own: what libraries tell below a warning may quote requests.
OURS = ("gateway", "engine_config")
VLLM_CONFIG = "VLLM_LOGGING_CONFIG_PATH"
MAX_PATH = 256


def configure(settings: Settings) -> None:
    """Log to stderr as the settings say: this process, uvicorn and vLLM, and engines started later."""
    kind = kind_of(settings)
    root = logging.getLogger()
    for old in tuple(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler(kind))
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    set_level(settings.log_level)
    if os.environ.get("VLLM_CONFIGURE_LOGGING", "1") != "0":
        os.environ.setdefault(VLLM_CONFIG, str(Path(__file__).with_name(f"vllm_logs_{kind}.json")))


def kind_of(settings: Settings) -> Kind:
    if settings.log_format == "auto":
        return "text" if sys.stderr.isatty() else "json"
    return settings.log_format


def set_level(level: str) -> None:
    """At once, of the gateway's own loggers. vLLM's is VLLM_LOGGING_LEVEL, read when an engine starts."""
    for name in OURS:
        logging.getLogger(name).setLevel(level)


class AccessLog:
    """Observes exchanges: a line each when they end, with tokens and times and never a prompt."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def observe(self, exchange: Exchange) -> None:
        # Probes come every few seconds and say little.
        level = logging.DEBUG if exchange.path in PUBLIC else logging.INFO
        if not self.settings.access_log or not access.isEnabledFor(level):
            return
        fields = access_fields(exchange)
        said = (fields["method"], fields["route"], fields["status"], fields["outcome"])
        access.log(level, "%s %s %s %s", *said, extra={**fields, **identity(exchange)})


def access_fields(exchange: Exchange) -> dict[str, Any]:
    """Of one request. Times in seconds; what is not known is left out."""
    notes = exchange.notes
    slot, meter = notes.get("slot"), notes.get("meter")
    fields: dict[str, Any] = {
        "method": exchange.method,
        "route": exchange.route or UNMATCHED,
        "status": exchange.status,
        "outcome": outcome_of(exchange),
        "path": None if exchange.route else exchange.path[:MAX_PATH],
        "error": error_of(exchange),
        "model": notes.get("model"),
        "profile": slot.profile.name if slot else None,
        "stream": exchange.streamed or None,
    }
    if slot and meter:
        cost = meter.cost()
        fields |= {
            "prompt_tokens": cost.prompt,
            "cached_tokens": cost.cached,
            "thinking_tokens": cost.thinking,
            "answer_tokens": cost.answer,
        }
    fields |= {
        "queue_s": _seconds(notes.get("queue_s")),
        "ttft_s": _seconds(first_token_s(exchange)),
        "duration_s": _seconds(exchange.ended - exchange.started),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
