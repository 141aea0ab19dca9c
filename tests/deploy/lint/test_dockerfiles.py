"""The Dockerfiles against their linter and the policy scan, and what they must not hold."""

import pytest

from tests.deploy.tools import ROOT, run, told

DOCKER = ROOT / "deploy/docker"
EACH = pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.gpu"])


@EACH
def test_hadolint_has_nothing_to_say(name: str) -> None:
    done = run("hadolint", "--failure-threshold", "style", DOCKER / name)
    assert done.returncode == 0, told(done)


def test_the_policy_scan_has_nothing_to_say() -> None:
    done = run("checkov", "--config-file", DOCKER / "checkov.yaml", "-d", DOCKER)
    assert done.returncode == 0, told(done)


@EACH
def test_dependencies_are_installed_by_hash_only(name: str) -> None:
    text = (DOCKER / name).read_text().replace("\\\n", " ")
    installs = [part for part in text.split("&&") if "pip install" in part and " -r " in part]
    assert len(installs) == 2
    assert all("--require-hashes" in part for part in installs)


@EACH
def test_nothing_but_the_code_and_the_locks_is_in_the_context(name: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert "*" in ignored  # an allowlist: keys, weights and .env cannot come in
    copied = [line.split() for line in (DOCKER / name).read_text().splitlines()]
    sources = {part for line in copied if line[:1] == ["COPY"] for part in line[1:-1]}
    own = {source for source in sources if not source.startswith(("--from", "/"))}
    assert own <= {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "requirements",
        "requirements/uv.txt",
        "requirements/cpu-image.lock",
        "requirements/gpu.lock",
        "engine_config",
        "gateway",
        "deploy/docker/healthcheck.py",
    }
