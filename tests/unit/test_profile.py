"""Profiles: each mistake is told where it is, and vLLM accepts all that are shipped."""

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine_config.build.registry import BUILDERS, ensure
from engine_config.profile import (
    GB,
    TEMPLATES,
    BuiltModel,
    FolderModel,
    HubModel,
    Profile,
    ProfileError,
    available,
    card_of,
    cli_args,
    load,
    read,
)
from engine_config.shape import SHAPES
from gateway.engines.opening import locate

ON_CARDS = [(name, card) for name in available() for card in (None, *load(name).cards)]

GOOD: dict[str, Any] = {
    "name": "mine",
    "title": "A profile of mine.",
    "served_as": "my-model",
    "model": {"kind": "build", "name": "smollm2-135m"},
    "vllm": {"max_num_seqs": {"value": 4, "reason": "A reason why.", "source": "a test"}},
}


def value(given: object) -> dict[str, Any]:
    return {"value": given, "reason": "A reason why.", "source": "a test"}


def write(folder: Path, stem: str = "mine", **changes: Any) -> Path:
    path = folder / f"{stem}.yaml"
    path.write_text(yaml.safe_dump(GOOD | changes), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def adapter() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, at its import
        return importlib.import_module("gateway.engines.vllm_start")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": "red"}, ["colour", "Extra inputs"]),
        ({"vllm": {"seed": {"value": 1, "source": "a test"}}}, ["vllm.seed.reason", "required"]),
        ({"vllm": {"seed": value(1) | {"reason": "short"}}}, ["vllm.seed.reason", "10 characters"]),
        ({"vllm": {"seed": 1}}, ["vllm.seed"]),
        ({"model": {"kind": "torrent"}}, ["model", "torrent"]),
        ({"model": {"kind": "hub", "repo": "a/b", "revision": "main"}}, ["model.hub.revision"]),
        ({"name": "yours"}, ["'yours'", "not 'mine'"]),
        ({"vllm": {"api_key": value("k")}}, ["api_key", "set by the gateway"]),
        ({"vllm": {"host": value("::"), "port": value(1)}}, ["host, port"]),
        ({"environment": {"LD_PRELOAD": value("x")}}, ["LD_PRELOAD", "only VLLM_*"]),
        ({"cards": {24: {"api_key": value("k")}}}, ["api_key", "set by the gateway"]),
        ({"cards": {24: {"seed": {"value": 1, "source": "a test"}}}}, ["cards.24.seed.reason"]),
        ({"cards": {"large": {}}}, ["cards.large", "valid integer"]),
        ({"format": "GPTQ int4!"}, ["format"]),
        ({"device": "tpu"}, ["device", "'cpu' or 'gpu'"]),
    ],
    ids=str,
)
def test_a_mistake_is_told_with_file_and_key(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    path = write(tmp_path, **changes)

    with pytest.raises(ProfileError) as caught:
        read(path)

    assert [word for word in [str(path), *words] if word not in str(caught.value)] == []


@pytest.mark.parametrize("text", ["name: [", "just text", "", "- a\n- b"])
def test_a_file_that_is_no_profile_at_all_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)

    with pytest.raises(ProfileError, match=r"mine\.yaml"):
        read(path)


def test_an_unknown_profile_is_told_with_those_there_are(tmp_path: Path) -> None:
    write(tmp_path)

    with pytest.raises(ProfileError, match=r"'nothing'; there are: demo, .*, mine, nano-qwen3"):
        load("nothing", tmp_path)


@pytest.mark.parametrize("name", ["../demo", "/etc/passwd", "Demo", "", ".demo", "a b", "demo\n"])
def test_a_name_cannot_be_a_path(name: str) -> None:
    with pytest.raises(ProfileError, match="not a profile name"):
        load(name)


def test_the_operators_folder_is_looked_at_first(tmp_path: Path) -> None:
    write(tmp_path, "demo", name="demo", served_as="my-demo")

    assert load("demo", tmp_path).served_as == "my-demo"
    assert load("nano-qwen3", tmp_path).served_as == "nano-qwen3"
    assert available(tmp_path).count("demo") == 1


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("enforce_eager", True, "--enforce-eager"),
        ("enforce_eager", False, "--no-enforce-eager"),
        ("max_num_seqs", 4, "--max-num-seqs=4"),
        ("dtype", "bfloat16", "--dtype=bfloat16"),
        ("hf_overrides", {"a": [1, "b c"]}, '--hf-overrides={"a": [1, "b c"]}'),
        ("chat_template", "smollm2.jinja", f"--chat-template={TEMPLATES / 'smollm2.jinja'}"),
    ],
)
def test_a_setting_becomes_vllms_own_argument(key: str, given: object, expected: str) -> None:
    profile = Profile.model_validate(GOOD | {"vllm": {key: value(given)}})

    assert cli_args(profile, "folder") == [
        "--model=folder",
        "--served-model-name=my-model",
        expected,
    ]


def test_a_hub_model_is_pinned_to_its_revision() -> None:
    model = {"kind": "hub", "repo": "a/b", "revision": "0" * 40}
    profile = Profile.model_validate(GOOD | {"model": model, "vllm": {}})

    assert f"--revision={'0' * 40}" in cli_args(profile, "a/b")


@pytest.mark.parametrize("name", available())
def test_every_shipped_profile_names_what_exists(name: str) -> None:
    profile = load(name)

    template = profile.settings().get("chat_template")
    assert template is None or Path(template).is_file()
    assert not isinstance(profile.model, BuiltModel) or profile.model.name in BUILDERS
    assert profile.format is not None
    assert profile.shape is None or (SHAPES / f"{profile.shape}.json").is_file()


def told(value: Any, given: object) -> Any:
    """vLLM makes objects of some settings; of those the fields that were given."""
    if isinstance(given, dict) and not isinstance(value, dict):
        return {key: getattr(value, key) for key in given}
    return value


@pytest.mark.parametrize(("name", "card"), ON_CARDS)
def test_vllm_takes_every_shipped_profile_as_it_is_meant(
    adapter: Any, name: str, card: int | None
) -> None:
    profile = load(name).on_card(card)

    args = adapter.parse_args(profile, "folder")

    assert {key: told(getattr(args, key), profile.settings()[key]) for key in profile.vllm} == (
        profile.settings()
    )
    assert (args.model, args.served_model_name) == ("folder", [profile.served_as])
    assert args.trust_remote_code is False


@pytest.mark.parametrize("format_", ["bf16", "int8", "gptq-int4", "awq-int4", "int4"])
def test_the_thinking_model_is_there_in_each_format_under_one_name(format_: str) -> None:
    profile = load(f"qwen3-4b-thinking-{format_}")

    assert (profile.format, profile.served_as) == (format_, "qwen3-4b-thinking")
    assert sorted(profile.cards) == [16, 24, 40, 80]
    assert isinstance(profile.model, HubModel if format_ == "bf16" else FolderModel)
    for card in profile.cards:
        settings = profile.settings(card)
        assert {"dtype", "max_model_len", "max_num_seqs", "gpu_memory_utilization"} <= set(settings)
        assert settings["enable_prefix_caching"] and settings["enable_chunked_prefill"]


@pytest.mark.parametrize(
    ("memory_bytes", "card"),
    [
        (None, None),  # a CPU
        (8 * GB, None),
        (15_842_934_784, 16),  # a T4 reports 15,109 MiB with ECC on
        (17 * GB, 16),
        (24_152_899_584, 24),  # an L4 reports 23,034 MiB
        (25_757_220_864, 24),  # an RTX 4090 reports 24,564 MiB
        (48 * GB, 40),
        (42_505_273_344, 40),
        (85_520_809_984, 80),
        (141 * GB, 80),
    ],
)
def test_a_card_is_known_by_what_the_gpu_reports(
    memory_bytes: int | None, card: int | None
) -> None:
    assert card_of((16, 24, 40, 80), memory_bytes) == card


def test_a_card_without_settings_is_told_with_those_there_are() -> None:
    profile = Profile.model_validate(GOOD | {"cards": {16: {}, 24: {"seed": value(3)}}})

    assert "--seed=3" in cli_args(profile, "folder", 24)
    assert "--seed=3" not in cli_args(profile, "folder")
    with pytest.raises(ProfileError, match="no settings for a 12 GB card; there are: 16 GB, 24 GB"):
        profile.settings(12)


def test_threads_of_an_engine_may_be_set() -> None:
    variables = {"OMP_NUM_THREADS": value(2), "VLLM_CPU_OMP_THREADS_BIND": value("0-1")}

    profile = Profile.model_validate(GOOD | {"environment": variables})

    assert set(profile.environment) == set(variables)


def test_a_folder_is_below_the_cache_unless_it_is_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_CACHE_DIR", str(tmp_path))
    for given in ("models/mine", str(tmp_path / "models" / "mine")):
        model = {"kind": "folder", "path": given, "make": "make it --out {folder}"}
        profile = Profile.model_validate(GOOD | {"model": model})
        folder = tmp_path / "models" / "mine"

        with pytest.raises(ProfileError, match=f"It is made by:\n  make it --out {folder}"):
            locate(profile, lambda text, fraction: None)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        assert locate(profile, lambda text, fraction: None) == folder
        (folder / "config.json").unlink()
        folder.rmdir()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"enforce_eagre": value(True)},
            "no setting 'enforce_eagre'; did you mean 'enforce_eager'",
        ),
        ({"zzzzzz": value(True)}, "no setting 'zzzzzz'"),
        ({"max_num_seqs": value("many")}, "max-num-seqs"),
        ({"dtype": value("float1")}, "dtype"),
        ({"enable_auto_tool_choice": value(True)}, "tool-call-parser"),
        (
            {"tool_call_parser": value("nobodys")} | {"enable_auto_tool_choice": value(True)},
            "nobodys",
        ),
    ],
    ids=str,
)
def test_what_vllm_refuses_is_told_with_the_profiles_name(
    adapter: Any, settings: dict[str, Any], words: str
) -> None:
    profile = Profile.model_validate(GOOD | {"vllm": settings})

    with pytest.raises(ProfileError) as caught:
        adapter.parse_args(profile, "folder")

    assert str(caught.value).startswith("profile mine: ")
    assert words in str(caught.value)


def test_vllm_takes_the_settings_that_hold_objects(adapter: Any) -> None:
    overrides = {"rope_theta": 1, "text": "a b"}
    profile = Profile.model_validate(GOOD | {"vllm": {"hf_overrides": value(overrides)}})

    assert adapter.parse_args(profile, "folder").hf_overrides == overrides


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = importlib.import_module("transformers")
        return transformers.AutoTokenizer.from_pretrained(
            ensure("smollm2-135m", lambda text, fraction: None)
        )


SYSTEM = {"role": "system", "content": "Be brief. 简短。"}
FIRST = [{"role": "user", "content": "Hi {{ there }}\n"}]
TURNS = [*FIRST, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Why?"}]


@pytest.mark.parametrize("answering", [True, False])
@pytest.mark.parametrize("messages", [FIRST, TURNS, [SYSTEM, *FIRST], [SYSTEM, *TURNS]])
def test_our_template_of_smollm2_equals_its_own_without_tools(
    tokenizer: Any, messages: list[dict[str, str]], answering: bool
) -> None:
    ours = (TEMPLATES / "smollm2.jinja").read_text(encoding="utf-8")
    own = {"tokenize": False, "add_generation_prompt": answering}

    assert tokenizer.apply_chat_template(
        messages, chat_template=ours, **own
    ) == tokenizer.apply_chat_template(messages, **own)


def test_our_template_of_smollm2_shows_tools_calls_and_results(tokenizer: Any) -> None:
    ours = (TEMPLATES / "smollm2.jinja").read_text(encoding="utf-8")
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    talk = [
        *FIRST,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "4"},
    ]

    text = tokenizer.apply_chat_template(talk, tools=[tool], chat_template=ours, tokenize=False)

    called = text.split("<tool_call>\n")[1].split("\n</tool_call>")[0]
    assert json.loads(called) == {"name": "add", "arguments": {"a": 2}}
    assert '"name": "add", "parameters"' in text
    assert "<tool_response>\n4\n</tool_response>" in text
