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
    TEMPLATES,
    BuiltModel,
    Profile,
    ProfileError,
    available,
    cli_args,
    load,
    read,
)

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
        return importlib.import_module("gateway.engines.vllm_adapter")


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

    with pytest.raises(ProfileError, match=r"'nothing'; there are: demo, mine, nano-qwen3"):
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


@pytest.mark.parametrize("name", available())
def test_vllm_takes_every_shipped_profile_as_it_is_meant(adapter: Any, name: str) -> None:
    profile = load(name)

    args = adapter.parse_args(profile, "folder")

    assert {key: getattr(args, key) for key in profile.vllm} == profile.settings()
    assert (args.model, args.served_model_name) == ("folder", [profile.served_as])


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
