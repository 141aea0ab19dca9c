"""The image of the real Dockerfile in the real Compose files: gateway, Redis, Prometheus, tenants' keys.

The base of the image is a stand-in (build.sh), and so are the other images; podman stands in for Docker. The
network is the test's own and leads nowhere, so the demo model is built in the container from a mounted
package, as on a machine without network.
"""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.deploy.image.stack import (
    ALERTMANAGER,
    SERVICES,
    URL,
    USER,
    Stack,
    inside,
    left,
    measured,
    podman,
    podman_api,
    prometheus,
    state,
    until,
)
from tests.deploy.tools import told

QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
ANSWER_S = 120


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, str]]:
    folder: Path = tmp_path_factory.mktemp("stack")
    with podman_api(folder) as api:
        stack = Stack(api, folder)
        key = stack.new_key("search-team", "--rpm", "60")
        try:
            stack.compose("up", "--detach", *SERVICES)
            stack.wait_ready()
            yield stack, key
        finally:
            stack.down()


def ask(key: str, **more: object) -> httpx.Response:
    return httpx.post(
        f"{URL}/v1/chat/completions",
        json={**QUESTION, "max_tokens": 24, **more},
        headers={"Authorization": f"Bearer {key}"},
        timeout=ANSWER_S,
    )


def test_a_question_is_answered_through_the_published_port(stack: tuple[Stack, str]) -> None:
    answer = ask(stack[1])
    assert answer.status_code == httpx.codes.OK, answer.text
    assert answer.json()["choices"][0]["message"]["content"].strip()
    assert ask("not a key at all").status_code == httpx.codes.UNAUTHORIZED


def test_the_limits_of_tenants_are_counted_in_redis(stack: tuple[Stack, str]) -> None:
    remaining = [int(ask(stack[1]).headers["x-ratelimit-remaining-requests"]) for _ in range(2)]
    assert remaining[1] == remaining[0] - 1
    keys = inside("redis", "redis-cli", "--scan").stdout
    assert "search-team" in keys


@pytest.mark.parametrize("service", SERVICES)
def test_each_health_check_passes(stack: tuple[Stack, str], service: str) -> None:
    """The gateway's is its image's, the others' are Compose's."""
    container = f"thinking-gateway-{service}-1"
    assert until(lambda: podman_says_healthy(container)), podman("logs", container)


def podman_says_healthy(container: str) -> bool:
    """Asked now: without systemd nothing asks by itself."""
    with contextlib.suppress(subprocess.CalledProcessError):
        podman("healthcheck", "run", container)
        return True
    return False


def test_it_runs_as_a_user_who_can_write_nothing_but_volumes(stack: tuple[Stack, str]) -> None:
    assert inside("gateway", "id", "-u").stdout.strip() == "10001"
    script = "import os; print([p for p in ('/', '/opt', '/opt/gateway', '/etc', '/cache', '/state', '/tmp')"
    probe = f"{script} if os.access(p, os.W_OK)])"
    writable = inside("gateway", "python", "-c", probe).stdout.strip()
    assert writable == "['/cache', '/state', '/tmp']"
    capabilities = inside("gateway", "grep", "CapEff", "/proc/self/status").stdout.split()
    assert int(capabilities[1], 16) == 0


def test_no_weights_are_in_the_image(stack: tuple[Stack, str]) -> None:
    image = podman("inspect", "--format", "{{.ImageName}}", "thinking-gateway-gateway-1").strip()
    places = ("/opt", "/usr", "/cache", "/state")
    weights = ("-size", "+20M", "-regex", r".*\.\(safetensors\|gguf\|bin\|pt\)")
    files = podman("run", "--rm", "--entrypoint", "find", image, *places, *weights)
    assert files.split() == []


def test_the_metrics_are_for_containers_with_an_admin_key(stack: tuple[Stack, str]) -> None:
    compose, key = stack
    with pytest.raises(httpx.ConnectError):
        httpx.get("http://127.0.0.1:8001/metrics")
    assert "an admin key" in metrics(key)
    assert "gateway_requests_total" in metrics(compose.admin_key)


def metrics(key: str) -> str:
    """What a container gets with that key."""
    headers = f"{{'authorization': 'Bearer {key}'}}"
    fetch = f"import httpx; print(httpx.get('http://gateway:8001/metrics', headers={headers}).text)"
    return inside("gateway", "python", "-c", fetch).stdout


def test_prometheus_scrapes_the_gateway_with_that_key(stack: tuple[Stack, str]) -> None:
    up = until(lambda: measured('up{job="gateway"}') == [1.0])
    assert up, prometheus("targets")
    assert until(lambda: sum(measured("gateway_requests_total")) > 0)
    groups = prometheus("rules")["groups"]
    assert "GatewayDown" in {rule["name"] for group in groups for rule in group["rules"]}


def test_prometheus_finds_the_alertmanager(stack: tuple[Stack, str]) -> None:
    found = until(lambda: bool(prometheus("alertmanagers")["activeAlertmanagers"]))
    assert found, prometheus("targets")
    assert httpx.get(f"{ALERTMANAGER}/-/ready").status_code == httpx.codes.OK


def test_the_commands_of_operators_work_in_the_container(stack: tuple[Stack, str]) -> None:
    done = inside("gateway", "gateway", "operations", "list")
    assert done.stdout.strip() == "none since the gateway started", told(done)


def test_the_keys_file_is_the_containers_alone(stack: tuple[Stack, str]) -> None:
    file = (stack[0].keys / "keys.yaml").stat()
    assert (file.st_uid, file.st_mode & 0o777) == (USER, 0o600)


def test_stop_lets_a_running_stream_end_and_leaves_no_engine(stack: tuple[Stack, str]) -> None:
    compose, key = stack
    body = {**QUESTION, "max_tokens": 300, "ignore_eos": True, "stream": True}
    headers = {"Authorization": f"Bearer {key}"}
    request = httpx.stream(
        "POST", f"{URL}/v1/chat/completions", json=body, headers=headers, timeout=ANSWER_S
    )
    with request as response:
        lines = (line for line in response.iter_lines() if line)
        first = next(lines)
        with ThreadPoolExecutor(1) as pool:
            stopping = pool.submit(compose.compose, "stop", "gateway")
            rest = list(lines)
            stopping.result()
    assert json.loads(first.removeprefix("data: "))["object"] == "chat.completion.chunk"
    assert rest[-1] == "data: [DONE]"
    gateway = state("gateway")  # what has exited has no process left: the engine's neither
    assert (gateway["Status"], gateway["ExitCode"]) == ("exited", 0)


def test_grafana_does_not_start_without_a_password(stack: tuple[Stack, str]) -> None:
    compose = stack[0]
    images = compose.run("config", "--images").stdout.split()
    (grafana,) = (image for image in images if image.startswith("grafana/"))
    gateway = podman("inspect", "--format", "{{.ImageName}}", "thinking-gateway-gateway-1").strip()
    podman("tag", gateway, f"localhost/{grafana}")  # Compose refuses before it is started
    try:
        done = compose.run("up", "--detach", "--no-deps", "grafana")
        compose.run("rm", "--force", "--stop", "grafana")
    finally:
        podman("untag", gateway, f"localhost/{grafana}")  # that name alone
    assert done.returncode != 0
    assert '"GRAFANA_ADMIN_PASSWORD" required by secret' in told(done)


def test_down_leaves_nothing(stack: tuple[Stack, str]) -> None:
    assert left()
    stack[0].down()
    assert left() == []
