"""The tools that `make deploy-tools` installs, and what is rendered with them."""

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy/compose"
CHART = ROOT / "deploy/helm/thinking-gateway"
VALUE_SETS = sorted((CHART / "ci").glob("*.yaml"))
# Of operators, not Kubernetes' own: they have models of their own.
CUSTOM_GROUPS = ("monitoring.coreos.com", "keda.sh", "gateway.networking.k8s.io")

Resource = dict[str, Any]


def folder() -> Path:
    return Path(os.environ["DEPLOY_TOOLS"])


def run(
    tool: str, *arguments: object, text: str = "", cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A tool with nothing of our environment but its path; never raises for a bad exit."""
    path = f"{folder() / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        [tool, *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PATH": path, "HOME": os.environ["HOME"], **environment},
        check=False,
    )


def told(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def template(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run("helm", "template", "gw", CHART, "--namespace", "ai", *arguments)


def rendered(*arguments: object) -> list[Resource]:
    done = template(*arguments)
    assert done.returncode == 0, told(done)
    return [resource for resource in yaml.safe_load_all(done.stdout) if resource]


def is_custom(resource: Resource) -> bool:
    return str(resource["apiVersion"]).split("/")[0] in CUSTOM_GROUPS


def one(resources: Iterable[Resource], kind: str) -> Resource:
    (found,) = (resource for resource in resources if resource["kind"] == kind)
    return found


def check_custom(resources: list[Resource]) -> subprocess.CompletedProcess[str]:
    script = (ROOT / "tests/deploy/models/validate.mjs").read_text()
    arguments = ("--input-type=module", "--eval", script)
    return run("node", *arguments, text=json.dumps(resources), cwd=folder())
