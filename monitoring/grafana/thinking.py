"""How models think: how often, how long, how it ends, and how sure the answers are."""

from monitoring.grafana.overview import MODEL
from monitoring.grafana.panels import Board, Chart, Limits, Query

RATE = "[$__rate_interval]"
THOUGHTS = 'gateway_thoughts_total{model=~"$model"}'
# Half of all, as the alert ForcedAnswers.
FORCED = Limits(0.3, 0.5)


def quantile(q: float, metric: str) -> str:
    buckets = f'sum by (model, le) (rate({metric}_bucket{{model=~"$model"}}{RATE}))'
    return f"histogram_quantile({q}, {buckets})"


ENDS = [
    Chart(
        "Thoughts by how they ended",
        "One per completion or sample. natural: the model closed its thought; budget: the gateway did.",
        "ops",
        [Query(f"sum by (end_reason) (rate({THOUGHTS}{RATE}))", "{{end_reason}}")],
        stacked=True,
    ),
    Chart(
        "Forced answers",
        "Share of the thoughts that the gateway ended, over 30 minutes.",
        "percentunit",
        [Query('model:gateway_forced_thoughts:ratio_rate30m{model=~"$model"}', "{{model}}")],
        FORCED,
    ),
    Chart(
        "Budget hits",
        "Thoughts that used up their budget.",
        "ops",
        [
            Query(
                f'sum by (model) (rate(gateway_budget_hits_total{{model=~"$model"}}{RATE}))',
                "{{model}}",
            )
        ],
    ),
    Chart(
        "Forced now",
        "The same share over the time on the page.",
        "percentunit",
        [
            Query(
                '(sum(increase(gateway_thoughts_total{model=~"$model",forced="true"}[$__range]))'
                f" or vector(0)) / sum(increase({THOUGHTS}[$__range]))",
                "forced",
            )
        ],
        FORCED,
        kind="stat",
    ),
    Chart(
        "Thoughts",
        "How many, over the time on the page.",
        "short",
        [Query(f"sum(increase({THOUGHTS}[$__range]))", "thoughts")],
        kind="stat",
    ),
    Chart(
        "Thinking share",
        "Thinking tokens of all generated ones, over the time on the page.",
        "percentunit",
        [
            Query(
                'sum(increase(gateway_tokens_total{model=~"$model",kind="thinking"}[$__range])) / '
                'sum(increase(gateway_tokens_total{model=~"$model",kind=~"thinking|answer"}[$__range]))',
                "thinking",
            )
        ],
        kind="stat",
    ),
]

LENGTHS = [
    Chart(
        "Generated tokens",
        "Thinking and answer; both are accounted to the tenant.",
        "short",
        [
            Query(
                'sum by (kind) (rate(gateway_tokens_total{model=~"$model",kind=~"thinking|answer"}'
                f"{RATE}))",
                "{{kind}}/s",
            )
        ],
        stacked=True,
    ),
    Chart(
        "Tokens per thought",
        "Mean length.",
        "short",
        [
            Query(
                f'sum by (model) (rate(gateway_tokens_total{{model=~"$model",kind="thinking"}}{RATE}))'
                f" / sum by (model) (rate({THOUGHTS}{RATE}))",
                "{{model}}",
            )
        ],
    ),
    Chart(
        "Time to first answer token",
        "From arrival, behind the thought: what a reader of answers waits.",
        "s",
        [
            Query(
                quantile(q, "gateway_time_to_first_answer_token_seconds"), f"{{{{model}}}} {name}"
            )
            for q, name in ((0.5, "p50"), (0.95, "p95"))
        ],
        Limits(10, 60),
    ),
]

CONFIDENCE = [
    Chart(
        "Confidence",
        "Of answers of /thinking where it was asked for; a probability only where the model is calibrated.",
        "percentunit",
        [
            Query(quantile(q, "gateway_confidence"), f"{{{{model}}}} {name}")
            for q, name in ((0.1, "p10"), (0.5, "p50"), (0.9, "p90"))
        ],
        width=12,
    ),
    Chart(
        "Answers by confidence",
        "How many answers in each tenth, over the time on the page; the numbers are cumulative.",
        "short",
        [
            Query(
                'sum by (le) (increase(gateway_confidence_bucket{model=~"$model"}[$__range]))',
                "up to {{le}}",
            )
        ],
        kind="bargauge",
        width=12,
    ),
]

THINKING = Board(
    "thinking-gateway-thinking",
    "Gateway: thinking",
    "Thoughts, their budgets, their lengths, and confidence.",
    [MODEL],
    [("How thoughts end", ENDS), ("How long they are", LENGTHS), ("Confidence", CONFIDENCE)],
)
