"""A profile: one YAML file that says which model to run and how, with the reason for each value.

A value that equals vLLM's default belongs in a profile only where the gateway depends on it. The names
under `vllm` are those of vLLM's own command line, with underscores; vLLM's own parser checks them
(`gateway profiles check`). `cards` holds what differs by the size of the GPU; `extends` is in inherit.py.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine_config.build.cache import cache_root
from engine_config.inherit import NAME, SHIPPED, ProfileError, resolved

__all__ = ["SHIPPED", "ProfileError"]

TEMPLATES = Path(__file__).parent / "templates"
ENGINE_VARIABLES = ("VLLM_", "TORCH")
THREADS = "OMP_NUM_THREADS"
GATEWAYS_OWN = {"model", "served_model_name", "host", "port", "api_key", "middleware"}
GB = 10**9
# A GPU may report a little less than what is printed on it: a T4 of 16 GB has 15.8 with ECC on.
CARD_TOLERANCE = 0.97


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
    """A Hugging Face folder on this machine. A relative path is below the cache of built models."""

    kind: Literal["folder"]
    path: Path
    # The commands that make it, shown when it is absent; `{folder}` stands for the folder.
    make: str | None = None

    @property
    def folder(self) -> Path:
        return cache_root() / self.path.expanduser()


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
    # bf16, int8, gptq-int4, awq-int4, int4, gptq-int8, fp8 or a word of your own; only for people and plans.
    format: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9-]{1,23}$")
    # Where it cannot run anywhere else. A profile without it runs on both.
    device: Literal["cpu", "gpu"] | None = None
    # What to take on the other device; said when the profile is refused there.
    elsewhere: str | None = None
    # Which is proposed of those that fit a machine: the highest. 0: never, as models of noise.
    rank: int = Field(default=0, ge=0)
    # A file of engine_config/shapes: what a plan computes with while the model is not on this machine.
    shape: str | None = None
    # Default `max_tokens` of /thinking. A slow or a babbling model should not think for minutes unasked.
    thinking_max_tokens: int = Field(default=8192, ge=32)
    # Depth of /v1 requests that ask for none; /thinking has medium. 0: such requests answer at once.
    thinking_default: int = Field(default=3, ge=0, le=5)
    # A file that `gateway calibrate` wrote, beside this one or absolute; it is bound to the model's hash.
    calibration: Path | None = None
    vllm: dict[str, Value] = Field(default_factory=dict)
    # What differs on a GPU with that many GB (10^9 bytes, as printed on it), over `vllm`.
    cards: dict[int, dict[str, Value]] = Field(default_factory=dict)
    environment: dict[str, Value] = Field(default_factory=dict)

    @model_validator(mode="after")
    def check_names(self) -> "Profile":
        keys = {*self.vllm, *(key for card in self.cards.values() for key in card)}
        if taken := sorted(GATEWAYS_OWN & keys):
            raise ValueError(f"vllm: {', '.join(taken)} is set by the gateway, not by a profile")
        variables = [key for key in self.environment if key != THREADS]
        if foreign := [key for key in variables if not key.startswith(ENGINE_VARIABLES)]:
            allowed = "* and ".join(ENGINE_VARIABLES)
            named = ", ".join(foreign)
            raise ValueError(f"environment: only {allowed}* variables and {THREADS}, not {named}")
        return self

    def on_card(self, card: int | None) -> "Profile":
        """The profile as it is on a GPU of that many GB, nothing left to choose; None: on no card.

        Raises:
            ProfileError: it has no settings for such a card.
        """
        if card is None:
            return self.model_copy(update={"cards": {}})
        if card not in self.cards:
            known = ", ".join(f"{size} GB" for size in sorted(self.cards)) or "none"
            raise ProfileError(
                f"profile {self.name}: no settings for a {card} GB card; there are: {known}"
            )
        return self.model_copy(update={"vllm": {**self.vllm, **self.cards[card]}, "cards": {}})

    def settings(self, card: int | None = None) -> dict[str, Any]:
        """vLLM setting names and values, the templates' folder filled in. Raises as `on_card`."""
        values = {key: entry.value for key, entry in self.on_card(card).vllm.items()}
        if template := values.get("chat_template"):
            values["chat_template"] = str(TEMPLATES / template)
        return values


def card_of(sizes: Collection[int], memory_bytes: int | None) -> int | None:
    """The largest of some cards' sizes (GB) that a GPU's memory amounts to.

    None where there is no GPU, and where it is smaller than all of them.
    """
    fitting = [size for size in sizes if (memory_bytes or 0) >= size * GB * CARD_TOLERANCE]
    return max(fitting, default=None)


def cli_args(profile: Profile, model: Path | str, card: int | None = None) -> list[str]:
    """The profile as vLLM's own command-line arguments; stock vLLM takes the same."""
    args = [f"--model={model}", f"--served-model-name={profile.served_as}"]
    if isinstance(profile.model, HubModel):
        args.append(f"--revision={profile.model.revision}")
    for key, value in profile.settings(card).items():
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
    """Names of all profiles, the operator's own included; bases are none."""
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
        profile = Profile.model_validate(resolved(path))
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ProfileError("\n".join([f"{path}: not a profile:", *lines])) from error
    if profile.name != path.stem:
        raise ProfileError(f"{path}: the name inside is '{profile.name}', not '{path.stem}'")
    return profile
