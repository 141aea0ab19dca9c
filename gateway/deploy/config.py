"""`deploy.yaml`: what to deploy, without a secret in it. `${NAME}` is taken from the environment."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.settings import PREFIX, Settings

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
REPOSITORY = Path(__file__).resolve().parents[2]
Scalar = str | int | float | bool


class DeployError(Exception):
    """It cannot be deployed; the message says why and what to do."""


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Local(Closed):
    """A process of this user's on this machine. `folder` gets env file, start script, log and pid file."""

    folder: Path = Path("thinking-gateway")


class Compose(Closed):
    """`files` are relative to `folder`; `environment` goes into its .env. `url`: by default its port."""

    folder: Path = REPOSITORY / "deploy" / "compose"
    files: tuple[str, ...] = ("compose.yaml",)
    profiles: tuple[str, ...] = ()
    environment: dict[str, Scalar] = Field(default_factory=dict)
    url: str | None = None


class Helm(Closed):
    """`values` are the chart's own; `url` is where callers reach it: validated from here if given."""

    chart: Path = REPOSITORY / "deploy" / "helm" / "thinking-gateway"
    release: str = "gateway"
    namespace: str = "default"
    values: dict[str, Any] = Field(default_factory=dict)
    url: str | None = None


class Deployment(Closed):
    """`settings`: names of docs/settings.md without GATEWAY_, in lower case. Secrets as `${NAME}`."""

    settings: dict[str, Scalar] = Field(default_factory=dict)
    wait_s: float = Field(default=900, gt=0)  # for it to be ready: a first start fetches and builds
    local: Local = Local()
    compose: Compose = Compose()
    helm: Helm = Helm()

    def variables(self) -> dict[str, str]:
        """The settings as the environment has them."""
        return {f"{PREFIX}{name.upper()}": text_of(value) for name, value in self.settings.items()}

    @property
    def key(self) -> str | None:
        """What a validation may call with."""
        found = self.settings.get("api_key")
        return None if found is None else str(found)

    @property
    def host(self) -> str | None:
        """What a validation by address says in `Host`: a name that `trusted_hosts` takes. None: any."""
        first = str(self.settings.get("trusted_hosts", "")).partition(",")[0].strip()
        name = first.replace("*", "validation", 1)
        return f"[{name}]" if ":" in name else name or None


def text_of(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def read(path: Path, environment: Mapping[str, str] = os.environ) -> Deployment:
    """The file, its `${NAME}` filled in.

    Raises:
        DeployError: it cannot be read, has a name that is none, or a variable is not set.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        deployment = Deployment.model_validate(filled(given, environment))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise DeployError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)
        ]
        raise DeployError(f"{path}: {'; '.join(lines)}") from error
    if unknown := sorted(deployment.settings.keys() - Settings.model_fields.keys()):
        raise DeployError(f"{path}: settings.{unknown[0]} is no setting; docs/settings.md has them")
    return deployment


def filled(given: Any, environment: Mapping[str, str]) -> Any:
    """The same with each `${NAME}` in a text replaced. Raises DeployError for one that is not set."""
    if isinstance(given, dict):
        return {key: filled(value, environment) for key, value in given.items()}
    if isinstance(given, list):
        return [filled(value, environment) for value in given]
    if not isinstance(given, str):
        return given

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in environment:
            raise DeployError(f"{name} is asked for as ${{{name}}} and is not in the environment")
        return environment[name]

    return VARIABLE.sub(value, given)
