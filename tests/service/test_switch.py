"""Switching under load, with the real engine: what goes wrong on the way costs no request.

One gateway serves nano-qwen3 for all of it; only a SIGTERM takes its own. Formats: test_formats.py.
"""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine_config.build import registry
from tests.ports import free_port
from tests.service.admin import JSON, Admin, write_profile
from tests.service.callers import Callers
from tests.service.server import NANO, PATIENCE_S, Gateway, alive, title, wait_for
from tests.service.test_lifecycle import Caller, command

GIB = 1024**3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Profiles of nano-qwen3: a fine-tune, one with other settings, and what cannot work."""
    folder = tmp_path_factory.mktemp("profiles")
    source = registry.ensure(NANO, lambda text, fraction: None)
    weights = load_file(source / "model.safetensors")
    spoiled = {name: torch.full_like(weight, torch.nan) for name, weight in weights.items()}
    torch.manual_seed(1)
    tuned = {
        name: weight * torch.randn_like(weight) if "down_proj" in name else weight
        for name, weight in weights.items()
    }
    for name, tensors in {"tuned": tuned, "spoiled": spoiled, "cut-off": weights}.items():
        model = folder / "models" / name
        model.mkdir(parents=True)
        for path in source.iterdir():
            if path.suffix != ".safetensors":
                (model / path.name).write_bytes(path.read_bytes())
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        write_profile(folder, name, model={"kind": "folder", "path": str(model)})
    cut = folder / "models" / "cut-off" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-4])
    write_profile(folder, "roomy", vllm={"kv_cache_memory_bytes": 512 * 1024**2})
    write_profile(folder, "able", vllm={"enable_lora": True, "max_lora_rank": 8})
    write_profile(folder, "refused", vllm={"max_model_len": 4_000_000})
    write_profile(folder, "huge", vllm={"kv_cache_memory_bytes": 1024 * GIB})
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One LoRA adapter of nano-qwen3 that changes what it says."""
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "poet").mkdir()
    torch.manual_seed(1)
    prefix = "base_model.model.model.layers.0.mlp.down_proj"
    tensors = {"A": torch.randn(4, 128), "B": torch.randn(64, 4)}
    named = {f"{prefix}.lora_{part}.weight": tensor for part, tensor in tensors.items()}
    save_file(named, folder / "poet" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["down_proj"]}
    (folder / "poet" / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def running(
    folder: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    log = tmp_path_factory.mktemp("switch") / "serve.log"
    settings = {
        "profiles_dir": folder,
        "rebuild_backoff_s": 0,
        "slot_cores": "0;1",
        "adapters_dir": adapters,
    }
    with Gateway(log, NANO, **settings) as gateway:
        yield gateway


@pytest.fixture
def admin(running: Gateway) -> Admin:
    return Admin(running)


def engines(gateway: Gateway) -> list[psutil.Process]:
    return [process for process in alive(gateway.family()) if "EngineCore" in title(process)]


def text(gateway: Gateway, model: str = NANO) -> str:
    """What the model says greedily: another model says something else."""
    prompt = "The capital of France is"
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "model": model}
    answer: str = httpx.post(f"{gateway.url}/generate", json=body, timeout=PATIENCE_S).json()[
        "text"
    ]
    return answer


def profile(gateway: Gateway) -> str:
    health = httpx.get(f"{gateway.url}/health", timeout=PATIENCE_S).json()
    name: str = health["models"][0]["profile"]
    return name


def test_another_profile_takes_over_under_load_and_one_engine_is_left(
    running: Gateway, admin: Admin
) -> None:
    (before,) = engines(running)

    with Callers(running, NANO) as callers:
        told = admin.switch(NANO, "roomy", way="blue_green")

    (after,) = engines(running)
    assert (told["state"], told["way"]) == ("succeeded", "blue_green"), told
    assert callers.failures == [] and sum(callers.served.values()) > 0
    assert before.pid != after.pid and profile(running) == "roomy"
    # Two that overlap are bound to different cores.
    assert after.cpu_affinity() == [1]


def test_without_room_for_two_callers_wait_and_none_fails(running: Gateway, admin: Admin) -> None:
    with Callers(running, NANO) as callers:
        told = admin.switch(NANO, NANO, way="park")

    assert (told["state"], told["way"]) == ("succeeded", "park"), told
    assert callers.failures == [] and sum(callers.served.values()) > 0
    assert len(engines(running)) == 1


@pytest.mark.parametrize("name", ["gptq-int4", "awq-int4"])
def test_qwen3s_templates_on_quantised_weights(running: Gateway, admin: Admin, name: str) -> None:
    registry.ensure(f"{NANO}-{name}", lambda text, fraction: None)
    told = admin.switch(NANO, f"{NANO}-{name}")

    with Callers(running, NANO, n=3) as callers:
        callers.wait_for_one_more(name)

    assert (told["state"], callers.failures) == ("succeeded", []), told
    assert set(callers.served) == {name}
    assert admin.switch(NANO, NANO)["state"] == "succeeded"


def test_a_fine_tune_goes_into_the_running_engine(running: Gateway, admin: Admin) -> None:
    (engine,) = engines(running)
    before = text(running)

    with Callers(running, NANO) as callers:
        told = admin.switch(NANO, "tuned")
    tuned = text(running)
    back = admin.switch(NANO, NANO)

    assert (told["state"], told["way"]) == ("succeeded", "in_place"), told
    assert callers.failures == [] and sum(callers.served.values()) > 0
    assert tuned != before and text(running) == before and back["way"] == "in_place"
    assert engines(running) == [engine]


@pytest.mark.parametrize(
    ("target", "way", "words"),
    [
        ("spoiled", "blue_green", "weights are broken"),
        ("spoiled", "in_place", "weights are broken"),
        ("cut-off", "auto", "model.safetensors is cut off"),
        ("refused", "auto", "max_model_len"),
        ("huge", "auto", "does not fit"),
    ],
)
def test_what_cannot_serve_is_told_and_the_old_engine_goes_on(
    running: Gateway, admin: Admin, target: str, way: str, words: str
) -> None:
    before, expected = engines(running), text(running)

    told = admin.switch(NANO, target, way=way)

    assert told["state"] == "failed" and words in told["error"], told
    assert (engines(running), text(running), profile(running)) == (before, expected, NANO)


def test_a_failure_with_callers_parked_brings_the_old_engine_back(
    running: Gateway, admin: Admin
) -> None:
    with Callers(running, NANO) as callers:
        told = admin.switch(NANO, "spoiled", way="park")

    assert told["state"] == "failed" and "restoring" in told["phase_seconds"], told
    assert callers.failures == [] and sum(callers.served.values()) > 0
    assert (len(engines(running)), profile(running)) == (1, NANO)


def test_a_wrong_profile_is_refused_at_once(running: Gateway, admin: Admin) -> None:
    unknown = admin.post(f"models/{NANO}/switch", profile="nobody")
    others = admin.post(f"models/{NANO}/switch", profile="demo")
    path = admin.post(f"models/{NANO}/switch", profile="/etc/passwd")
    no_model = admin.post("models/nobody/switch", profile="roomy")

    assert [each.status_code for each in (unknown, others, path, no_model)] == [400, 400, 400, 404]
    assert "roomy" in unknown.json()["detail"]


def test_a_cancelled_switch_leaves_no_process_behind(running: Gateway, admin: Admin) -> None:
    before = engines(running)

    operation = admin.begin(NANO, "roomy")
    admin.reaches(operation, "loading")
    wait_for(lambda: len(engines(running)) == 2, PATIENCE_S, "a second engine")
    told = admin.post(f"operations/{operation}/cancel").json()

    assert (told["state"], told["published"]) == ("cancelled", False)
    assert engines(running) == before
    assert text(running)


def test_a_new_engine_that_dies_while_it_loads_changes_nothing(
    running: Gateway, admin: Admin
) -> None:
    before = engines(running)

    operation = admin.begin(NANO, "roomy")
    wait_for(lambda: len(engines(running)) == 2, PATIENCE_S, "a second engine")
    (new,) = [process for process in engines(running) if process not in before]
    new.send_signal(signal.SIGKILL)
    told = admin.ended(operation)

    assert told["state"] == "failed", told
    assert engines(running) == before and text(running)


def test_an_old_engine_that_dies_meanwhile_is_replaced_by_the_new_one(
    running: Gateway, admin: Admin
) -> None:
    (old,) = engines(running)

    operation = admin.begin(NANO, "roomy")
    wait_for(lambda: len(engines(running)) == 2, PATIENCE_S, "a second engine")
    old.send_signal(signal.SIGKILL)
    told = admin.ended(operation)

    assert told["state"] == "succeeded", told
    assert text(running) and profile(running) == "roomy"
    assert len(engines(running)) == 1


def test_an_adapter_is_a_model_of_its_own_on_every_route(running: Gateway, admin: Admin) -> None:
    assert admin.switch(NANO, "able")["state"] == "succeeded"
    base = text(running)

    loaded = admin.post(f"models/{NANO}/adapters", adapter="poet")
    poem = text(running, "poet")
    chat = httpx.post(
        f"{running.url}/v1/chat/completions",
        json={"model": "poet", "messages": [{"role": "user", "content": "Go"}], "max_tokens": 16},
        timeout=PATIENCE_S,
    )
    gone = httpx.delete(
        f"{running.admin_url}/admin/models/{NANO}/adapters/poet", headers=JSON, timeout=PATIENCE_S
    )

    assert loaded.json() == {"model": NANO, "adapters": ["poet"]}
    assert poem != base and text(running) == base
    assert (chat.status_code, chat.json()["model"]) == (200, "poet")
    assert gone.json()["adapters"] == []


def test_sigterm_midway_ends_cleanly_with_the_running_stream(folder: Path, tmp_path: Path) -> None:
    settings = {"profiles_dir": folder, "drain_timeout_s": PATIENCE_S}
    with Gateway(tmp_path / "serve.log", NANO, **settings) as gateway:
        caller, admin = Caller(gateway), Admin(gateway)
        operation = admin.begin(NANO, "roomy")
        admin.reaches(operation, "loading")
        wait_for(lambda: len(engines(gateway)) == 2, PATIENCE_S, "a second engine")
        family = gateway.family()

        gateway.signal(signal.SIGTERM)
        caller.join(PATIENCE_S)

        assert caller.error is None and "generate.completed" in caller.text
        assert gateway.process.wait(timeout=PATIENCE_S) == 0, gateway.log.read_text()
        wait_for(lambda: not alive(family), PATIENCE_S, f"still there: {family}")


def test_the_commands_say_what_happens(running: Gateway, admin: Admin) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return command(*words, "--admin-url", running.admin_url)

    admin.switch(NANO, NANO)
    there, wrong = run("switch", NANO, "tuned"), run("switch", NANO, "nobody")
    broken = run("switch", NANO, "cut-off")
    back = run("switch", NANO, NANO)
    listed, reloaded = run("operations", "list"), run("reload")
    cancelled = run("operations", "cancel", there.stdout.split(":")[0])

    assert (there.returncode, back.returncode) == (0, 0), there.stderr + back.stderr
    assert "succeeded: in_place" in there.stdout and "reloading" in there.stdout
    assert broken.returncode == 1 and "cut off" in broken.stdout
    assert (wrong.returncode, cancelled.returncode) == (1, 1)
    assert "tuned" in wrong.stderr and "has ended" in cancelled.stderr
    assert f"{NANO}: {NANO} -> tuned  in_place  succeeded" in listed.stdout
    assert reloaded.stdout.strip() == "nothing differs"


def test_a_gateway_that_is_not_there_is_told_with_the_remedy() -> None:
    done = command("switch", NANO, "tuned", "--admin-url", f"http://127.0.0.1:{free_port()}")

    assert done.returncode == 1
    assert "--admin-url" in done.stderr and "Traceback" not in done.stderr


def test_sighup_reads_settings_anew(running: Gateway, admin: Admin) -> None:
    before = running.log.read_text().count("reloaded:")
    refused = httpx.post(f"{running.admin_url}/admin/reload", timeout=PATIENCE_S)
    told = httpx.post(f"{running.admin_url}/admin/reload", headers=JSON, timeout=PATIENCE_S)

    running.signal(signal.SIGHUP)

    assert (refused.status_code, told.json()["changed"]) == (415, [])
    wait_for(lambda: running.log.read_text().count("reloaded:") == before + 2, PATIENCE_S, "reload")
    assert running.process.poll() is None and text(running)
