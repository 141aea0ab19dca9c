"""`gateway profiles`: what can be served, why it is set up so, and what fits where."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console as Rich
from rich.table import Table

from engine_config.fitting import obstacle, present
from engine_config.hardware import here
from engine_config.profile import (
    GB,
    HubModel,
    Profile,
    ProfileError,
    available,
    cli_args,
    load,
)
from gateway.console import Console
from gateway.engines.opening import locate

profiles = typer.Typer(help="What can be served, and why it is set up so.", no_args_is_help=True)

ProfilesDir = Annotated[
    Path | None, typer.Option("--profiles-dir", help="A folder of your own profiles.")
]
Card = Annotated[
    int | None, typer.Option("--card", help="As on a GPU of that many GB; the profile has which.")
]


@profiles.command("list")
def list_profiles(profiles_dir: ProfilesDir = None) -> None:
    """All profiles, a line each, and whether they fit this machine."""
    hardware = here()
    table = Table("profile", "model name", "fits here", "what")
    for name in available(profiles_dir):
        profile = load(name, profiles_dir)
        fits = obstacle(profile, hardware) or _where(profile)
        table.add_row(name, profile.served_as, fits, profile.title)
    rich = Rich()
    rich.print(table)
    rich.print(f"Here: {hardware}.")


def _where(profile: Profile) -> str:
    if isinstance(profile.model, HubModel):
        return "yes, with internet"
    return "yes" if present(profile) else "yes, once it is made"


@profiles.command("show")
def show_profile(name: str, profiles_dir: ProfilesDir = None) -> None:
    """Each value with its reason and source, and what differs by the size of the GPU."""
    profile = load(name, profiles_dir)
    rich = Rich()
    rich.print(f"[bold]{profile.name}[/]: {profile.title}")
    rich.print(
        f"served as {profile.served_as}; model: {profile.model.model_dump(exclude_none=True)}"
    )
    table = Table("setting", "value", "reason", "source", show_lines=True)
    for key, entry in {**profile.vllm, **profile.environment}.items():
        table.add_row(key, str(entry.value), entry.reason, entry.source)
    for card, entries in sorted(profile.cards.items()):
        for key, entry in entries.items():
            table.add_row(f"{card} GB: {key}", str(entry.value), entry.reason, entry.source)
    rich.print(table)


@profiles.command("args")
def profile_args(name: str, card: Card = None, profiles_dir: ProfilesDir = None) -> None:
    """The profile as stock vLLM's command-line arguments, one per line; builds the model if absent."""
    profile = load(name, profiles_dir)
    with Console().building(name) as progress:
        location = locate(profile, progress)
    typer.echo("\n".join(cli_args(profile, location, card)))


@profiles.command("check")
def check_profile(name: str, profiles_dir: ProfilesDir = None) -> None:
    """Let vLLM check the names and values, for each card; loads no model."""
    profile = load(name, profiles_dir)
    adapter = importlib.import_module("gateway.engines.vllm_start")
    for card in (None, *sorted(profile.cards)):
        adapter.parse_args(profile.on_card(card), "model")
    typer.echo(f"{name}: good")


@profiles.command("plan")
def plan_profile(
    name: str,
    gpu_memory: Annotated[
        float | None,
        typer.Option(
            "--gpu-memory", min=1, help="GB of the GPU, as printed on it. Unset: this machine."
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option("--context", min=32, help="Tokens, in place of the profile's max_model_len."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    profiles_dir: ProfilesDir = None,
) -> None:
    """What fits: weights, KV cache, requests at once, by vLLM's own formulae; loads no model."""
    profile = load(name, profiles_dir)
    memory = _memory(profile, gpu_memory)
    planner = importlib.import_module("gateway.engines.vllm_plan")
    place = _place(profile)
    made = planner.plan(profile, place, memory, context)
    others = () if made.fits else list(_others(profile, profiles_dir))
    remedies = [] if made.fits else planner.remedies(profile, place, made, others)
    if as_json:
        typer.echo(json.dumps({**made.as_json(), "remedies": remedies}, indent=2))
        return
    _show(made, remedies)


def _memory(profile: Profile, gpu_memory: float | None) -> int | None:
    """Bytes of the GPU to plan for; None: the CPU of this machine."""
    if gpu_memory is not None:
        return int(gpu_memory * GB)
    if (gpu := here().gpu) is not None:
        return gpu.memory_bytes
    if profile.cards or profile.device == "gpu":
        raise ProfileError(
            f"profile {profile.name} is made for a GPU and there is none here that vLLM would use; say "
            "for which to plan, as --gpu-memory 24"
        )
    return None


def _place(profile: Profile) -> Path | str:
    """The model's folder; a profile that names a shape is planned without one, and nothing is fetched."""
    if not present(profile) and (profile.shape or isinstance(profile.model, HubModel)):
        return profile.name
    with Console().building(profile.name) as progress:
        return locate(profile, progress)


def _others(profile: Profile, profiles_dir: Path | None) -> Iterator[tuple[Profile, Path | str]]:
    """The same model in other formats."""
    for name in available(profiles_dir):
        other = load(name, profiles_dir)
        if other.served_as == profile.served_as:
            yield other, _place(other)


def _show(made: Any, remedies: list[str]) -> None:
    rich = Rich()
    rich.print(f"[bold]{made.profile}[/] on {_device(made)}")
    table = Table("what", "GB", "from")
    for row in _rows(made):
        table.add_row(*row)
    rich.print(table)
    table = Table("context, tokens", "requests at once")
    for length, count in made.concurrent.items():
        table.add_row(f"{length:,}", f"{min(count, made.max_num_seqs):.2f}")
    rich.print(table)
    rich.print(f"At most {made.max_num_seqs} requests run at once (max_num_seqs).")
    if made.fits:
        rich.print("[green]It fits.[/]")
        return
    lacking = f"{made.missing / GB:.2f} GB lack for one request of {made.max_model_len:,} tokens"
    rich.print(f"[red]It does not fit:[/] {lacking}.")
    rich.print(f"What would fit: {', '.join(remedies) or 'nothing that is known here'}.")


def _device(made: Any) -> str:
    size = f"{made.memory / GB:.1f} GB"
    if made.device == "cpu":
        return f"the CPU of this machine ({size} of RAM)"
    settings = f"its settings for {made.card} GB" if made.card else "its settings for no card"
    return f"a GPU of {size}, {settings}"


def _rows(made: Any) -> Iterator[tuple[str, str, str]]:
    guess = "estimate; no figure of it was ever checked on a GPU"
    measured = "from engines measured on 2 cores; with what CPU kernels keep twice"
    yield "weights", _gb(made.weights), made.weights_source
    yield "activations", _gb(made.activations), guess if made.device == "gpu" else "estimate"
    yield "process", _gb(made.process), guess if made.device == "gpu" else measured
    pages = f"{made.blocks:,} pages of {made.block_size}, {made.bytes_per_token:,} bytes per token"
    yield "KV cache", _gb(made.kv_cache), f"{made.kv_tokens:,} tokens: {pages}"
    bound = f"of {_gb(made.budget)} that vLLM may use" if made.budget else f"of {_gb(made.memory)}"
    yield "together", _gb(made.total), bound


def _gb(number: int) -> str:
    return f"{number / GB:.2f}"
