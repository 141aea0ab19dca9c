"""How long a request wants to think, in every dialect that clients speak.

One body may carry several wishes (SDKs add their own defaults); an exact budget beats a level, "off" beats
both, and the operator's default and ceiling frame them all. docs/thinking.md has the table.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.errors import InvalidRequest
from gateway.observability.spans import Branch
from gateway.thinking.budget import DEPTHS, MIN_TOTAL, NAMES

if TYPE_CHECKING:
    from gateway.thinking.run import ThinkingRun

MEDIUM = 3
OFF = 0
# Read here; vLLM would ignore them, or do something else (`include_reasoning` binds a grammar at once).
OURS = {
    "thinking_depth",
    "thinking_budget",
    "thinking_token_budget",
    "enable_thinking",
    "include_reasoning",
}
# Names that a client may use for "whatever you think is right".
BY_DEFAULT = ("auto", "default", "adaptive")


@dataclass
class Plan:
    """How one request thinks. `runs` are its completions, as they are begun."""

    level: int
    budget: int | None = None
    ceiling: int | None = None
    hidden: bool = False  # the caller does not want to see the thought
    thinks: bool = False  # there is room for a thought and it is wanted
    hurried: str | None = None  # why it is to answer now; perhaps told before it began
    runs: list["ThinkingRun"] = field(default_factory=list)
    trace: Branch = field(default_factory=Branch)  # where its phases are told

    def begin(self, runs: Iterable["ThinkingRun"]) -> None:
        """Take over the runs; a request told to answer before it began does not think."""
        self.runs.extend(runs)
        if self.hurried is not None:
            self.answer_now(self.hurried)

    def answer_now(self, why: str = "answer_now") -> str:
        """End every thought. Returns the phase: waiting, thinking, answering or done."""
        self.hurried = why
        phases = [run.answer_now(why) for run in self.runs]
        return "thinking" if "thinking" in phases else next(iter(phases), "waiting")


# The plan of the request being served, from the route down to the engine client under vLLM's handlers.
PLAN: ContextVar[Plan | None] = ContextVar("thinking_plan", default=None)


@dataclass(frozen=True, slots=True)
class Frame:
    """What the operator allows."""

    default: int = MEDIUM
    ceiling: int | None = None


def read(body: Mapping[str, Any], frame: Frame) -> Plan:
    """The plan for a body of any of our routes.

    Raises:
        InvalidRequest: a depth, effort or budget that is none; names the field.
    """
    budget = _first(list(_budgets(body)))
    levels = list(_levels(body, frame))
    level = OFF if OFF in levels or budget == 0 else _first(levels)
    if level is None:
        level = frame.default if budget is None else max(frame.default, MEDIUM)
    if not isinstance(body.get("include_reasoning", True), bool | str | None):
        raise InvalidRequest("'include_reasoning' must be true or false", "include_reasoning")
    hidden = body.get("include_reasoning") is False or bool(
        _object(body, "reasoning").get("exclude")
    )
    thinks = level > 0 and all(total >= MIN_TOTAL for total in _totals(body))
    return Plan(level, budget, frame.ceiling, hidden, thinks)


def _totals(body: Mapping[str, Any]) -> list[float]:
    names = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    given = (body.get(name) for name in names)
    return [value for value in given if isinstance(value, int | float)]


def amended(body: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The body for vLLM's handlers, with what only we read taken out."""
    kept = {key: value for key, value in body.items() if key not in OURS}
    if "messages" in body and "reasoning" in body:
        del kept["reasoning"]  # OpenRouter's; on /v1/responses it is OpenAI's own
    if "messages" in body and kept.get("reasoning_effort") not in (None, *NAMES):
        kept["reasoning_effort"] = DEPTHS[plan.level].name  # vLLM knows names only
    template = {"enable_thinking": plan.thinks}
    kept["chat_template_kwargs"] = {**_object(body, "chat_template_kwargs"), **template}
    return kept


def report(run: "ThinkingRun") -> dict[str, Any]:
    """What a caller is told about how it thought."""
    out = run.outcome
    return {
        "end_reason": out.end_reason,
        "forced": out.forced,
        "tokens": out.reasoning_tokens,
        "forced_tokens": out.forced_tokens,
        "answer_source": out.answer_source,
        "budget": asdict(out.budget),
    }


def _levels(body: Mapping[str, Any], frame: Frame) -> Iterator[int]:
    """Each level that is spoken of, the most deliberate way of saying it first."""
    template = _object(body, "chat_template_kwargs")
    reasoning, kind = _object(body, "reasoning"), _object(body, "thinking").get("type")
    if kind is not None and str(kind) not in _SWITCH:
        raise InvalidRequest(
            f"'thinking.type' is {kind!r}; it takes {', '.join(_SWITCH)}", "thinking"
        )
    named = (
        ("thinking_depth", body.get("thinking_depth")),
        ("reasoning_effort", body.get("reasoning_effort")),
        ("reasoning.effort", reasoning.get("effort")),
        ("output_config.effort", _object(body, "output_config").get("effort")),
        ("chat_template_kwargs.reasoning_effort", template.get("reasoning_effort")),
    )
    for name, value in named:
        if value is not None and value not in BY_DEFAULT:
            yield _level(name, value)
    switches = (
        ("enable_thinking", body.get("enable_thinking")),
        ("chat_template_kwargs.enable_thinking", template.get("enable_thinking")),
        ("chat_template_kwargs.thinking", template.get("thinking")),
        ("reasoning.enabled", reasoning.get("enabled")),
        ("thinking.type", _SWITCH.get(str(kind))),
    )
    for name, value in switches:
        if value is not None:
            yield _switched(name, value, frame)


_SWITCH = {"disabled": False, "enabled": True, "adaptive": True, "auto": True}


def _switched(name: str, value: Any, frame: Frame) -> int:
    if not isinstance(value, bool):
        raise InvalidRequest(f"'{name}' must be true or false, not {value!r}", name.split(".")[0])
    return (frame.default or MEDIUM) if value else OFF


def _level(name: str, value: Any) -> int:
    if isinstance(value, str) and value in NAMES:
        return NAMES[value]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(DEPTHS):
        return value
    raise InvalidRequest(
        f"'{name}' is {value!r}; it takes {', '.join(NAMES)}, or 0 to {len(DEPTHS) - 1}",
        name.split(".")[0],
    )


def _budgets(body: Mapping[str, Any]) -> Iterator[int]:
    given = (
        ("thinking_budget", body.get("thinking_budget")),
        ("thinking_token_budget", body.get("thinking_token_budget")),
        ("thinking.budget_tokens", _object(body, "thinking").get("budget_tokens")),
        ("reasoning.max_tokens", _object(body, "reasoning").get("max_tokens")),
    )
    for name, value in given:
        if value is None or value == -1:  # -1: no limit, as vLLM and Gemini have it
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InvalidRequest(
                f"'{name}' is {value!r}; it takes a number of tokens, 0 or more",
                name.split(".")[0],
            )
        yield value


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise InvalidRequest(f"'{name}' must be an object, not {value!r}", name)
    return value or {}


def _first(values: list[int]) -> int | None:
    return values[0] if values else None
