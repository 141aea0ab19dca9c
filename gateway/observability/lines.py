"""Log lines: JSON for machines, text for people. A record is one line, whatever is in it.

Engine processes import this too (the `vllm_logs_*.json` beside it name `engine_handler`), so it imports
nothing of the gateway and nothing heavy.
"""

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

if TYPE_CHECKING:
    from gateway.asgi import Exchange

Kind = Literal["json", "text"]
ExcInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]

# What no line may hold as it is: it would end the line, or make a terminal do something.
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
CONTROLS |= {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
# Their messages quote what they were given, and that may be a prompt.
QUOTING = ("pydantic", "pydantic_core", "jsonschema")
MAX_SAID = 1000  # characters of an exception's message
MAIN = "MainProcess"  # what vLLM adds to our own lines; those of its engines are named otherwise
# What is no field of a line: the record's own, uvicorn's, asyncio's, vLLM's.
RESERVED = [*RESERVED_ATTRS, "color_message", "taskName", "fileinfo"]
IDS = ("request_id", "tenant")
# Of an access line, what its message says; and what is of no use to a person.
NOT_SHOWN = {
    *RESERVED,
    *IDS,
    "message",
    "vllm_process_name",
    "method",
    "route",
    "status",
    "outcome",
}
COLOURS = {"DEBUG": 2, "WARNING": 33, "ERROR": 31, "CRITICAL": 31}

# The request being served, for whatever is logged meanwhile.
EXCHANGE: ContextVar["Exchange | None"] = ContextVar("exchange", default=None)


class AddRequest(logging.Filter):
    """Puts request id, tenant and trace id on records made while a request is served."""

    def filter(self, record: logging.LogRecord) -> bool:
        exchange = EXCHANGE.get()
        # A task that a request began may outlive it (vLLM's output handler does): not its lines.
        if exchange is not None and not exchange.ended:
            record.__dict__.update(identity(exchange))
        return True


def identity(exchange: "Exchange") -> dict[str, str]:
    """Whose line it is: what is known of request id, tenant and trace id."""
    tenant, trace = exchange.notes.get("tenant"), exchange.notes.get("trace")
    told = {
        "request_id": exchange.request_id,
        "tenant": tenant.name if tenant else "",
        "trace_id": trace.trace_id if trace else "",
    }
    return {name: value for name, value in told.items() if value}


def handler(kind: Kind, stream: TextIO | None = None) -> logging.Handler:
    """Writes such lines to stderr, or to the stream."""
    made = logging.StreamHandler(stream)
    made.setFormatter(Json() if kind == "json" else Text(made.stream.isatty()))
    made.addFilter(AddRequest())
    return made


def engine_handler(kind: Kind) -> logging.Handler:
    """vLLM's handler in whichever process; its level is vLLM's own variable."""
    logging.getLogger("vllm").setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "ERROR").upper())
    return handler(kind, sys.stderr)


class Json(JsonFormatter):
    """`time level logger message`, then what the record brings; an exception is the field `exception`."""

    def __init__(self) -> None:
        names = {
            "levelname": "level",
            "name": "logger",
            "exc_info": "exception",
            "vllm_process_name": "process",
        }
        super().__init__(
            ["levelname", "name", "message"],
            rename_fields=names,
            timestamp="time",
            reserved_attrs=RESERVED,
        )

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        if log_data.get("process") == MAIN:
            del log_data["process"]
        return {"time": log_data.pop("time"), **log_data}

    def formatException(self, ei: Any) -> str:
        return told(ei)


class Text(logging.Formatter):
    """`time LEVEL logger [request tenant]: message name=value`; an exception's lines are set off by a bar."""

    def __init__(self, coloured: bool = False) -> None:
        super().__init__()
        self.coloured = coloured and not os.environ.get("NO_COLOR")

    def format(self, record: logging.LogRecord) -> str:
        ids = [getattr(record, name, "") for name in IDS]
        whose = f" [{' '.join(filter(None, ids))}]" if any(ids) else ""
        level = record.levelname
        if self.coloured and level in COLOURS:
            level = f"\x1b[{COLOURS[level]}m{level}\x1b[0m"
        said = f"{whose}: {record.getMessage()}{_fields(record)}".translate(CONTROLS)
        line = f"{self.formatTime(record)} {level} {record.name}{said}"
        if record.exc_info:
            rows = told(record.exc_info).split("\n")
            line += "".join(f"\n    | {row.translate(CONTROLS)}" for row in rows)
        return line


def _fields(record: logging.LogRecord) -> str:
    return "".join(
        f" {name}={value}" for name, value in record.__dict__.items() if name not in NOT_SHOWN
    )


def told(exc_info: ExcInfo) -> str:
    """The traceback, causes first; of messages only what cannot be a caller's text, and never all."""
    blocks = []
    for error in _chain(exc_info[1]):
        frames = "".join(traceback.format_tb(error.__traceback__))
        blocks.append(f"Traceback (most recent call last):\n{frames}{_said(error)}")
    return "\n\nthen:\n\n".join(reversed(blocks))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _said(error: BaseException) -> str:
    kind = type(error)
    if kind.__module__.split(".")[0] in QUOTING:
        return f"{kind.__qualname__} (its message is left out: it quotes what it was given)"
    inner = [_said(each) for each in getattr(error, "exceptions", ())]
    return "\n".join([f"{kind.__qualname__}: {str(error)[:MAX_SAID]}", *inner])
