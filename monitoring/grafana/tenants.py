"""Who uses the gateway, how much of their limits, and what is turned away."""

from monitoring.grafana.panels import Board, Chart, Limits, Query, Variable

TENANT = Variable("tenant", "gateway_requests_total", "Tenant")
MODEL = Variable("model", "gateway_requests_total", "Model")
MINE = 'tenant=~"$tenant",model=~"$model|"'
RATE = "[$__rate_interval]"
SHARE = Limits(0.8, 1)


def share(used: str, limit: str) -> str:
    """Of a limit that a tenant has; every gateway tells it, so it is taken once."""
    told = f'gateway_tenant_limit{{limit="{limit}",tenant=~"$tenant"}}'
    return f"{used} / max by (tenant) ({told})"


USE = [
    Chart(
        "Requests by tenant",
        "All outcomes. Tenants beyond GATEWAY_METRICS_TENANTS are together as `other`.",
        "reqps",
        [Query(f"sum by (tenant) (rate(gateway_requests_total{{{MINE}}}{RATE}))", "{{tenant}}")],
        width=12,
        stacked=True,
    ),
    Chart(
        "Generated tokens by tenant",
        "Thinking and answer.",
        "short",
        [
            Query(
                'sum by (tenant) (tenant:gateway_tokens:rate5m{tenant=~"$tenant",kind=~"thinking|answer"})',
                "{{tenant}} tokens/s",
            )
        ],
        width=12,
        stacked=True,
    ),
    Chart(
        "Tokens by kind",
        "Prompt includes cached.",
        "short",
        [Query(f"sum by (kind) (rate(gateway_tokens_total{{{MINE}}}{RATE}))", "{{kind}}/s")],
    ),
    Chart(
        "Requests by outcome",
        "Of the chosen tenants.",
        "reqps",
        [Query(f"sum by (outcome) (rate(gateway_requests_total{{{MINE}}}{RATE}))", "{{outcome}}")],
        stacked=True,
    ),
    Chart(
        "Prompt tokens from the cache",
        "Share of the prompt that the prefix cache had; it is salted per tenant.",
        "percentunit",
        [
            Query(
                f'(sum by (tenant) (rate(gateway_tokens_total{{{MINE},kind="cached"}}{RATE})) or '
                f"sum by (tenant) (rate(gateway_tokens_total{{{MINE}}}{RATE})) * 0) / "
                f'sum by (tenant) (rate(gateway_tokens_total{{{MINE},kind="prompt"}}{RATE}))',
                "{{tenant}}",
            )
        ],
    ),
    Chart(
        "Tokens, over the time on the page",
        "Prompt, thinking and answer.",
        "short",
        [
            Query(
                'sort_desc(sum by (tenant) (increase(gateway_tokens_total{tenant=~"$tenant",'
                'model=~"$model|",kind!="cached"}[$__range])))',
                "{{tenant}}",
            )
        ],
        kind="bargauge",
        width=24,
    ),
]

LIMITS = [
    Chart(
        "Requests, share of rpm",
        "Requests of the last minute at all gateways by the tenant's limit; refused ones are in it. Gateways "
        "that do not count together (GATEWAY_REDIS_URL) allow it once each.",
        "percentunit",
        [
            Query(
                share(
                    'sum by (tenant) (increase(gateway_requests_total{tenant=~"$tenant"}[1m]))',
                    "rpm",
                ),
                "{{tenant}}",
            )
        ],
        SHARE,
    ),
    Chart(
        "Tokens, share of tpm",
        "Tokens of the last minute at all gateways by the tenant's limit.",
        "percentunit",
        [
            Query(
                share(
                    'sum by (tenant) (increase(gateway_tokens_total{tenant=~"$tenant",kind!="cached"}[1m]))',
                    "tpm",
                ),
                "{{tenant}}",
            )
        ],
        SHARE,
    ),
    Chart(
        "Requests turned away",
        "Over a limit, or no room.",
        "reqps",
        [
            Query(
                f'sum by (tenant) (rate(gateway_requests_total{{{MINE},outcome="rejected"}}{RATE}))',
                "{{tenant}}",
            )
        ],
        Limits(0.1, 1),
    ),
    Chart(
        "Limits",
        "Of the keys file; what is not listed is not limited.",
        "short",
        [
            Query(
                'max by (tenant, limit) (gateway_tenant_limit{tenant=~"$tenant"})',
                "{{tenant}} {{limit}}",
            )
        ],
        kind="table",
        width=12,
    ),
    Chart(
        "Usage rows",
        "What is billed: written to the database, or dropped because it was away.",
        "ops",
        [Query(f"sum by (outcome) (rate(gateway_usage_rows_total{RATE}))", "{{outcome}}")],
        width=12,
    ),
]

TENANTS = Board(
    "thinking-gateway-tenants",
    "Gateway: tenants",
    "Use, limits and refusals by tenant.",
    [TENANT, MODEL],
    [("Use", USE), ("Limits", LIMITS)],
)
