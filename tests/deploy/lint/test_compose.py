"""The Compose files: every combination is one that Compose takes, and secrets have no default."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.tools import COMPOSE, ROOT, run, told

PROFILES = ("cache", "monitoring", "proxy")
OVERRIDES = ("compose.gpu.yaml", "compose.keys.yaml")
KEY = "0123456789abcdef"
SECRETS = {"GATEWAY_API_KEY": KEY, "GRAFANA_ADMIN_PASSWORD": "of the test"}


def subsets(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [some for size in range(len(names) + 1) for some in itertools.combinations(names, size)]


def arguments(profiles: tuple[str, ...], overrides: tuple[str, ...] = ()) -> list[str]:
    files = itertools.chain(*(("-f", name) for name in ("compose.yaml", *overrides)))
    return [*files, *itertools.chain(*(("--profile", name) for name in profiles))]


def config(
    profiles: tuple[str, ...], overrides: tuple[str, ...] = (), **environment: str
) -> dict[str, Any]:
    given = (*arguments(profiles, overrides), "config", "--format", "json")
    done = run("docker-compose", *given, cwd=COMPOSE, **SECRETS, **environment)
    assert done.returncode == 0, told(done)
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    return services


@pytest.mark.parametrize("overrides", subsets(OVERRIDES), ids="+".join)
@pytest.mark.parametrize("profiles", subsets(PROFILES), ids="+".join)
def test_every_combination_is_taken(profiles: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    done = run(
        "docker-compose", *arguments(profiles, overrides), "config", "-q", cwd=COMPOSE, **SECRETS
    )
    assert done.returncode == 0, told(done)
    assert "variable is not set" not in told(done)


def test_without_a_key_compose_says_which_variable_and_where() -> None:
    done = run("docker-compose", "up", cwd=COMPOSE)
    assert done.returncode != 0
    assert "GATEWAY_API_KEY" in told(done) and "deploy/compose/.env" in told(done)


def test_without_a_profile_there_is_the_gateway_alone() -> None:
    assert set(config(())) == {"gateway"}


@pytest.mark.parametrize("overrides", subsets(OVERRIDES), ids="+".join)
def test_every_service_is_bounded_and_has_no_privileges(overrides: tuple[str, ...]) -> None:
    for name, service in config(PROFILES, overrides).items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["mem_limit"]) > 0 and service["pids_limit"] > 0, name
        assert not service.get("privileged"), name


def test_images_are_pinned_and_only_the_proxy_is_published_beyond_this_machine() -> None:
    for name, service in config(PROFILES, ("compose.gpu.yaml",)).items():
        tag = service["image"].partition(":")[2]
        assert any(character.isdigit() for character in tag), name
        addresses = {port.get("host_ip") for port in service.get("ports", ())}
        assert addresses <= ({None} if name == "proxy" else {"127.0.0.1"}), name


def test_the_admin_listener_is_not_published() -> None:
    targets = [port["target"] for port in config(PROFILES)["gateway"]["ports"]]
    assert targets == [8000]


def test_compose_waits_longer_than_the_gateway_drains() -> None:
    gateway = config(PROFILES)["gateway"]
    drain = int(gateway["environment"]["GATEWAY_DRAIN_TIMEOUT_S"])
    minutes, _, seconds = gateway["stop_grace_period"].removesuffix("s").rpartition("m")
    assert int(minutes or 0) * 60 + int(seconds) > drain + 10


def test_on_a_gpu_one_is_reserved() -> None:
    services = config(("monitoring",), ("compose.gpu.yaml",))
    for name in ("gateway", "dcgm-exporter"):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]
    assert services["gateway"]["image"].endswith("-gpu")


def test_grafana_has_no_password_but_yours() -> None:
    grafana = config(("monitoring",))["grafana"]
    assert "GF_SECURITY_ADMIN_PASSWORD" not in grafana["environment"]
    assert grafana["secrets"][0]["source"] == "grafana_admin_password"
    assert SECRETS["GRAFANA_ADMIN_PASSWORD"] not in json.dumps(grafana)


@pytest.mark.parametrize("given", [{}, {"METRICS_KEY_FILE": "./prometheus.yml"}])
def test_prometheus_has_a_key_to_send(given: dict[str, str]) -> None:
    """With GATEWAY_METRICS_OPEN=false it would be turned away without one, and GatewayDown would fire."""
    jobs = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())["scrape_configs"]
    (gateway,) = (job for job in jobs if job["job_name"] == "gateway")
    key = Path("/etc/prometheus", gateway["authorization"]["credentials_file"])
    service = config(("monitoring",), (), **given)["prometheus"]
    (source,) = (each["source"] for each in service["volumes"] if each["target"] == str(key))

    assert Path(source) == COMPOSE / given.get("METRICS_KEY_FILE", "metrics.nokey")
    assert (COMPOSE / "metrics.nokey").read_text() == "none\n"


def test_the_keys_folder_is_made_for_the_containers_user() -> None:
    """`gateway keys` writes a file that its owner alone may read."""
    recipe = (COMPOSE / "compose.keys.yaml").read_text()
    users = re.findall(r"^USER (\d+):", (ROOT / "deploy/docker/Dockerfile.cpu").read_text(), re.M)

    assert re.findall(r"install -d -o (\d+) keys", recipe) == users


def test_each_file_that_is_mounted_exists() -> None:
    for name, service in config(PROFILES).items():
        for volume in service.get("volumes", ()):
            source = Path(volume.get("source", ""))
            if volume["type"] == "bind" and source.is_relative_to(ROOT):
                assert source.exists(), f"{name}: {source}"


def test_the_caddyfile_is_good() -> None:
    path = COMPOSE / "Caddyfile"
    done = run("caddy", "validate", "--adapter", "caddyfile", "--config", path)
    assert done.returncode == 0, told(done)
    assert run("caddy", "fmt", path).stdout == path.read_text()
