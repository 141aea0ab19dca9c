"""A profile: one YAML file that says which model to run and how, with the reason for each value.

A value that equals vLLM's default does not belong in a profile. The names under `vllm` are those of
vLLM's own command line, with underscores; vLLM's own parser checks them (`gateway profiles check`).
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SHIPPED = Path(__file__).parent / "profiles"
TEMPLATES = Path(__file__).parent / "templates"
ENGINE_VARIABLES = ("VLLM_", "TORCH")
NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")


class ProfileError(Exception):
    """A profile that cannot be used; the message says which, where and how to mend it."""


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Value(Closed):
    """One setting that differs from vLLM's default."""

    value: Any
    reason: str = Field(min_length=10)
    source: str = Field(min_length=3)


class BuiltModel(Closed):
    """A model that `engine_config/build` makes from packages; needs no hub."""

    kind: Literal["build"]
    name: str


class FolderModel(Closed):
    """A Hugging Face folder on this machine."""

    kind: Literal["folder"]
    path: Path


class HubModel(Closed):
    """A Hugging Face repository at a pinned revision."""

    kind: Literal["hub"]
    repo: str
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")


Model = Annotated[BuiltModel | FolderModel | HubModel, Field(discriminator="kind")]


class Profile(Closed):
    """What to run and how. `served_as` is the model name that requests use."""

    name: str
    title: str
    served_as: str
    model: Model
    # Default `max_tokens` of /thinking. A slow or a babbling model should not think for minutes unasked.
    thinking_max_tokens: int = Field(default=8192, ge=32)
    # Depth of /v1 requests that ask for none; /thinking has medium. 0: such requests answer at once.
    thinking_default: int = Field(default=3, ge=0, le=5)
    # A file that `gateway calibrate` wrote, beside this one or absolute; it is bound to the model's hash.
    calibration: Path | None = None
    vllm: dict[str, Value] = Field(default_factory=dict)
    environment: dict[str, Value] = Field(default_factory=dict)

    @model_validator(mode="after")
    def check_names(self) -> "Profile":
        ours = {"model", "served_model_name", "host", "port", "api_key", "middleware"}
        if taken := sorted(ours & self.vllm.keys()):
            raise ValueError(f"vllm: {', '.join(taken)} is set by the gateway, not by a profile")
        if foreign := [key for key in self.environment if not key.startswith(ENGINE_VARIABLES)]:
            allowed = "* and ".join(ENGINE_VARIABLES)
            raise ValueError(f"environment: only {allowed}* variables, not {', '.join(foreign)}")
        return self

    def settings(self) -> dict[str, Any]:
        """vLLM setting names and values, the templates' folder filled in."""
        values = {key: entry.value for key, entry in self.vllm.items()}
        if template := values.get("chat_template"):
            values["chat_template"] = str(TEMPLATES / template)
        return values


def cli_args(profile: Profile, model: Path | str) -> list[str]:
    """The profile as vLLM's own command-line arguments; stock vLLM takes the same."""
    args = [f"--model={model}", f"--served-model-name={profile.served_as}"]
    if isinstance(profile.model, HubModel):
        args.append(f"--revision={profile.model.revision}")
    for key, value in profile.settings().items():
        args.extend(_flag(key.replace("_", "-"), value))
    return args


def _flag(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, bool):
        yield f"--{name}" if value else f"--no-{name}"
    elif isinstance(value, dict):
        yield f"--{name}={json.dumps(value)}"
    else:
        yield f"--{name}={value}"


def available(extra_dir: Path | None = None) -> list[str]:
    """Names of all profiles, the operator's own included."""
    folders = [folder for folder in (extra_dir, SHIPPED) if folder is not None]
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def load(name: str, extra_dir: Path | None = None) -> Profile:
    """The profile of that name, checked. The operator's folder is looked at first.

    Raises:
        ProfileError: no such profile, or a file that is not one.
    """
    if not NAME.fullmatch(name):
        raise ProfileError(f"'{name}' is not a profile name (lower case, digits, dots and dashes)")
    for folder in (extra_dir, SHIPPED):
        if folder is not None and (path := folder / f"{name}.yaml").is_file():
            return read(path)
    known = ", ".join(available(extra_dir))
    raise ProfileError(f"no profile named '{name}'; there are: {known}")


def read(path: Path) -> Profile:
    """A profile from a file; its name must be the file's.

    Raises:
        ProfileError: not YAML, an unknown or missing key, or a wrong type, each named.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        profile = Profile.model_validate(raw)
    except yaml.YAMLError as error:
        raise ProfileError(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ProfileError("\n".join([f"{path}: not a profile:", *lines])) from error
    if profile.name != path.stem:
        raise ProfileError(f"{path}: the name inside is '{profile.name}', not '{path.stem}'")
    return profile
