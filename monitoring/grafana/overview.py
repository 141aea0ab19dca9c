"""The first page to look at: are the objectives kept, and if not, what is it?"""

from monitoring.grafana.panels import Board, Chart, Limits, Query, Variable

MODEL = Variable("model", "gateway_slot_state", "Model")
OURS = 'outcome=~"ok|server_error"'
# Fast and slow burn of alerts.yml.
BURN = Limits(1, 14.4)


def within(metric: str, le: str) -> str:
    """Share of a histogram's events in a bucket, over the time on the page."""
    good = f'sum(increase({metric}_bucket{{le="{le}",model=~"$model"}}[$__range]))'
    return f'{good} / sum(increase({metric}_count{{model=~"$model"}}[$__range]))'


def quantiles(metric: str) -> list[Query]:
    recorded = f"model:{metric}:quantile_rate5m"
    return [
        Query(f'{recorded}{{quantile="{q}",model=~"$model"}}', f"{{{{model}}}} {name}")
        for q, name in (("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99"))
    ]


def burn(slo: str) -> list[Query]:
    return [
        Query(
            f'slo_model:gateway_burn:rate{window}{{slo="{slo}",model=~"$model|"}}',
            f"{{{{model}}}} {window}",
        )
        for window in ("5m", "1h", "6h")
    ]


OBJECTIVES = [
    Chart(
        "Availability",
        "Generating requests without a server error, of those that were ours to answer; all models, as the "
        "objective counts them. Objective: 99.5 %.",
        "percentunit",
        [
            Query(
                '1 - sum(increase(gateway_outcomes_total{outcome="server_error"}[$__range]))'
                f" / sum(increase(gateway_outcomes_total{{{OURS}}}[$__range]))",
                "availability",
            )
        ],
        Limits(0.999, 0.995, falling=True),
        kind="stat",
        width=6,
    ),
    Chart(
        "First token within 2.5 s",
        "From the request's arrival, the wait for admission included. Objective: 95 %.",
        "percentunit",
        [Query(within("gateway_time_to_first_token_seconds", "2.5"), "within 2.5 s")],
        Limits(0.97, 0.95, falling=True),
        kind="stat",
        width=6,
    ),
    Chart(
        "Tokens within 0.1 s",
        "Requests whose mean time per output token is at most 0.1 s. Objective: 95 %.",
        "percentunit",
        [Query(within("gateway_time_per_output_token_seconds", "0.1"), "within 0.1 s")],
        Limits(0.97, 0.95, falling=True),
        kind="stat",
        width=6,
    ),
    Chart(
        "Alerts that fire",
        "Alerts of alerts.yml that fire now; the troubleshooting guide has an entry for each.",
        "short",
        [
            Query(
                'count(ALERTS{alertstate="firing",service="thinking-gateway"}) or vector(0)',
                "firing",
            )
        ],
        Limits(1, 3),
        kind="stat",
        width=3,
    ),
    Chart(
        "Gateways ready",
        "Share of the scraped gateways whose /health/ready says yes.",
        "percentunit",
        [Query('sum(gateway_ready) / count(up{job="gateway"})', "ready")],
        Limits(1, 0.5, falling=True),
        kind="stat",
        width=3,
    ),
    *(
        Chart(
            f"Error budget burn: {name}",
            "How many times faster than the objective allows. 1 is just sustainable; above 14.4 over an "
            "hour, or 6 over six, somebody is called.",
            "short",
            burn(slo),
            BURN,
        )
        for name, slo in (
            ("availability", "availability"),
            ("first token", "ttft"),
            ("tokens", "itl"),
        )
    ),
]

TRAFFIC = [
    Chart(
        "Requests by outcome",
        "Rejected: over a limit or no room. Client error: the caller must change the request.",
        "reqps",
        [
            Query(
                'sum by (outcome) (rate(gateway_requests_total{model=~"$model|"}[$__rate_interval]))',
                "{{outcome}}",
            )
        ],
        stacked=True,
    ),
    Chart(
        "Requests by route",
        "All outcomes; probes are not counted.",
        "reqps",
        [
            Query(
                'sum by (route) (rate(gateway_requests_total{model=~"$model|"}[$__rate_interval]))',
                "{{route}}",
            )
        ],
        stacked=True,
    ),
    Chart(
        "Requests turned away",
        "By the code of the error; docs/troubleshooting_errors.md says what each means.",
        "reqps",
        [Query("sum by (reason) (rate(gateway_rejections_total[$__rate_interval]))", "{{reason}}")],
        Limits(0.1, 1),
    ),
    Chart(
        "Tokens",
        "As they are accounted. Prompt includes what the prefix cache had.",
        "short",
        [Query('sum by (kind) (model:gateway_tokens:rate5m{model=~"$model"})', "{{kind}}/s")],
    ),
    Chart(
        "Requests that run and wait",
        "Waiting is for admission, before the engine sees them.",
        "short",
        [
            Query(
                'sum by (model) (gateway_running_requests{model=~"$model"})', "{{model}} running"
            ),
            Query('sum by (model) (gateway_queued_requests{model=~"$model"})', "{{model}} waiting"),
            Query('sum by (model) (gateway_parked_requests{model=~"$model"})', "{{model}} parked"),
        ],
    ),
    Chart(
        "Wait for admission",
        "95th percentile, by class.",
        "s",
        [
            Query(
                "histogram_quantile(0.95, sum by (model, class, le) "
                '(rate(gateway_queue_time_seconds_bucket{model=~"$model"}[$__rate_interval])))',
                "{{model}} {{class}}",
            )
        ],
        Limits(1, 10),
    ),
]

LATENCY = [
    Chart(
        "Time to first token",
        "From arrival, plain answers included; queue and prefill are in it.",
        "s",
        quantiles("gateway_time_to_first_token_seconds"),
        Limits(2.5, 10),
    ),
    Chart(
        "Time per output token",
        "Mean of a request after its first token.",
        "s",
        quantiles("gateway_time_per_output_token_seconds"),
        Limits(0.1, 0.5),
    ),
    Chart(
        "Whole request",
        "From arrival to the last byte, of requests that went well.",
        "s",
        quantiles("gateway_request_duration_seconds"),
    ),
]

OVERVIEW = Board(
    "thinking-gateway-overview",
    "Gateway: overview",
    "Objectives, traffic and latency of all gateways together.",
    [MODEL],
    [("Objectives", OBJECTIVES), ("Traffic", TRAFFIC), ("Latency", LATENCY)],
)
