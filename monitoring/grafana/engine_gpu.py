"""Engines, switches, the machine and its GPUs."""

from monitoring.grafana.overview import MODEL
from monitoring.grafana.panels import Board, Chart, Limits, Query, Variable

INSTANCE = Variable("instance", "gateway_ready", "Gateway")
ENGINE = 'model=~"$model",instance=~"$instance"'
VLLM = 'model_name=~"$model",instance=~"$instance"'
HERE = 'instance=~"$instance"'
RATE = "[$__rate_interval]"
FULL = Limits(0.8, 0.95)
PERCENT = "percentunit"


def vllm_quantile(q: float, metric: str) -> str:
    buckets = f"sum by (model_name, le) (rate(vllm:{metric}_bucket{{{VLLM}}}{RATE}))"
    return f"histogram_quantile({q}, {buckets})"


STATE = [
    Chart(
        "Engines up",
        "1 while an engine is in service and its process lives.",
        "short",
        [Query(f"min by (model) (gateway_engine_up{{{ENGINE}}})", "{{model}}")],
        Limits(1, 0.5, falling=True),
        kind="stat",
        width=6,
    ),
    Chart(
        "Restarts",
        "Engines built in the place of dead ones, over the time on the page.",
        "short",
        [
            Query(
                f"sum by (model) (increase(gateway_engine_restarts_total{{{ENGINE}}}[$__range]))",
                "{{model}}",
            )
        ],
        Limits(1, 2),
        kind="stat",
        width=6,
    ),
    Chart(
        "Versions",
        "Of the gateway and of vLLM.",
        "short",
        [Query("count by (version, vllm) (gateway_build_info)", "{{version}} on vLLM {{vllm}}")],
        kind="table",
        width=12,
    ),
    Chart(
        "State",
        "loading, ready, switching, hung, dead; with the profile in service.",
        "short",
        [
            Query(
                f"gateway_slot_state{{{ENGINE}}} == 1",
                "{{instance}} {{model}} {{profile}} {{state}}",
            )
        ],
        kind="state-timeline",
        width=12,
    ),
    Chart(
        "Age of the last sign of progress",
        "About 0 while idle. Hung after GATEWAY_ENGINE_HANG_S (120 s), killed after twice that.",
        "s",
        [Query(f"gateway_engine_heartbeat_age_seconds{{{ENGINE}}}", "{{instance}} {{model}}")],
        Limits(30, 120),
        width=12,
    ),
]

WORK = [
    Chart(
        "Requests in the engine",
        "vLLM's own: running, and waiting inside the engine.",
        "short",
        [
            Query(
                f"sum by (model_name) (vllm:num_requests_running{{{VLLM}}})",
                "{{model_name}} running",
            ),
            Query(
                f"sum by (model_name) (vllm:num_requests_waiting{{{VLLM}}})",
                "{{model_name}} waiting",
            ),
        ],
    ),
    Chart(
        "KV cache",
        "Share of the blocks in use. At 100 % vLLM preempts.",
        PERCENT,
        [Query(f"vllm:kv_cache_usage_perc{{{VLLM}}}", "{{instance}} {{model_name}} {{slot}}")],
        FULL,
    ),
    Chart(
        "Preemptions",
        "Requests whose cache was thrown away and computed again.",
        "ops",
        [
            Query(
                f"sum by (model_name) (rate(vllm:num_preemptions_total{{{VLLM}}}{RATE}))",
                "{{model_name}}",
            )
        ],
        Limits(0.01, 0.05),
    ),
    Chart(
        "Tokens",
        "Computed by the engine: prompt (without what was cached) and generated.",
        "short",
        [
            Query(
                f"sum by (model_name) (rate(vllm:prompt_tokens_total{{{VLLM}}}{RATE}))",
                "{{model_name}} prompt/s",
            ),
            Query(
                f"sum by (model_name) (rate(vllm:generation_tokens_total{{{VLLM}}}{RATE}))",
                "{{model_name}} generated/s",
            ),
        ],
    ),
    Chart(
        "Prefix cache hits",
        "Share of the queried tokens that were there.",
        PERCENT,
        [
            Query(
                f"sum by (model_name) (rate(vllm:prefix_cache_hits_total{{{VLLM}}}{RATE})) / "
                f"sum by (model_name) (rate(vllm:prefix_cache_queries_total{{{VLLM}}}{RATE}))",
                "{{model_name}}",
            )
        ],
    ),
    Chart(
        "Engine times, 95th percentile",
        "vLLM's own, without the gateway's queue; compare with the overview.",
        "s",
        [
            Query(vllm_quantile(0.95, "time_to_first_token_seconds"), "{{model_name}} first token"),
            Query(
                vllm_quantile(0.95, "inter_token_latency_seconds"), "{{model_name}} between tokens"
            ),
            Query(vllm_quantile(0.95, "request_queue_time_seconds"), "{{model_name}} queue"),
        ],
    ),
]

SWITCHES = [
    Chart(
        "Switches",
        "That ended, by outcome.",
        "short",
        [
            Query(
                f"sum by (model, outcome) (gateway_switches_total{{{ENGINE}}})",
                "{{model}} {{outcome}}",
            )
        ],
        width=12,
    ),
    Chart(
        "Phases of switches",
        "Mean time of each phase since the gateway's start.",
        "s",
        [
            Query(
                f"sum by (phase) (gateway_switch_phase_seconds_sum{{{ENGINE}}}) / "
                f"sum by (phase) (gateway_switch_phase_seconds_count{{{ENGINE}}})",
                "{{phase}}",
            )
        ],
        kind="bargauge",
        width=12,
    ),
]

MACHINE = [
    Chart(
        "Memory",
        "Of the control group, or of the machine where there is none.",
        "bytes",
        [Query(f"gateway_memory_bytes{{{HERE}}}", "{{instance}} {{kind}}")],
    ),
    Chart(
        "Memory in use",
        "Share of the limit.",
        PERCENT,
        [Query(f"instance:gateway_memory:ratio{{{HERE}}}", "{{instance}}")],
        FULL,
    ),
    Chart(
        "Gateway's own process",
        "Resident memory of the front end; engines are processes of their own.",
        "bytes",
        [Query(f'process_resident_memory_bytes{{job="gateway",{HERE}}}', "{{instance}}")],
    ),
    Chart(
        "Cores of the gateway's process",
        "One event loop: near 1 it is the bottleneck.",
        "short",
        [Query(f'rate(process_cpu_seconds_total{{job="gateway",{HERE}}}{RATE})', "{{instance}}")],
        Limits(0.7, 0.9),
    ),
    Chart(
        "File descriptors",
        "Share of the limit; each open stream is one.",
        PERCENT,
        [
            Query(
                f'process_open_fds{{job="gateway",{HERE}}} / process_max_fds{{job="gateway",{HERE}}}',
                "{{instance}}",
            )
        ],
        FULL,
    ),
    Chart(
        "Free disk",
        "Where state and models are kept.",
        PERCENT,
        [Query(f"instance_path:gateway_disk_free:ratio{{{HERE}}}", "{{instance}} {{path}}")],
        Limits(0.2, 0.1, falling=True),
    ),
    Chart(
        "Redis",
        "1 while it answers. Only where limits are shared through it.",
        "short",
        [Query(f"gateway_redis_up{{{HERE}}}", "{{instance}}")],
        Limits(1, 0.5, falling=True),
        kind="stat",
        width=12,
    ),
    Chart(
        "Certificate valid for",
        "Only where the gateway itself speaks TLS.",
        "s",
        [
            Query(
                f"gateway_certificate_not_after_timestamp_seconds{{{HERE}}} - time()",
                "{{instance}}",
            )
        ],
        Limits(14 * 86400, 2 * 86400, falling=True),
        kind="stat",
        width=12,
    ),
]

GPU = [
    Chart(
        "GPU utilisation",
        "Share of the time in which it computed. Full load while an engine makes no step: stuck.",
        PERCENT,
        [Query(f"gateway_gpu_utilization_ratio{{{HERE}}}", "{{instance}} GPU {{gpu}}")],
    ),
    Chart(
        "GPU memory",
        "In use, by whomever. vLLM takes its share at the start and keeps it.",
        PERCENT,
        [Query(f"instance_gpu:gateway_gpu_memory:ratio{{{HERE}}}", "{{instance}} GPU {{gpu}}")],
        Limits(0.95, 0.97),
    ),
    Chart(
        "GPU temperature",
        "Cards slow down at 85 to 90 degrees.",
        "celsius",
        [Query(f"gateway_gpu_temperature_celsius{{{HERE}}}", "{{instance}} GPU {{gpu}}")],
        Limits(80, 85),
    ),
]

ENGINE_GPU = Board(
    "thinking-gateway-engine-gpu",
    "Gateway: engines and GPUs",
    "What engines do, what they cost, and the machine they run on.",
    [MODEL, INSTANCE],
    [
        ("Engines", STATE),
        ("Work", WORK),
        ("Switches", SWITCHES),
        ("Machine", MACHINE),
        ("GPUs", GPU),
    ],
)
