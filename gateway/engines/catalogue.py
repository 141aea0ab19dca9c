"""The profiles this gateway knows: read at the start and on reload, never while a request waits.

A file that is edited has no effect before a reload, and a reload that finds a broken file changes nothing.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from engine_config.profile import Profile, ProfileError, available, load
from gateway.errors import InvalidRequest
from gateway.settings import Settings


class Catalogue:
    """All profiles by name."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.profiles: Mapping[str, Profile] = {}
        self.broken: Mapping[str, str] = {}  # file's name -> what is wrong with it

    def read(self) -> tuple[Mapping[str, Profile], Mapping[str, str]]:
        """The profiles as they are on disk now, and what is wrong with those that cannot be used."""
        folder: Path | None = self.settings.profiles_dir
        good: dict[str, Profile] = {}
        broken: dict[str, str] = {}
        for name in available(folder):
            try:
                good[name] = load(name, folder)
            except ProfileError as error:
                broken[name] = str(error)
        return good, broken

    def adopt(self, good: Mapping[str, Profile], broken: Mapping[str, str]) -> None:
        """From now on these are the profiles."""
        self.profiles, self.broken = good, broken

    def choices(self, model: str) -> list[str]:
        """Names of the profiles that a model may be switched to."""
        allowed = self.settings.switch_profiles
        return [
            name
            for name, profile in self.profiles.items()
            if profile.served_as == model and (not allowed or name in allowed)
        ]

    def reachable(self, models: Iterable[str]) -> list[Profile]:
        """All profiles that some of these models may be switched to."""
        return [self.profiles[name] for model in models for name in self.choices(model)]

    def choose(self, model: str, name: str) -> Profile:
        """The profile of that name, if the model may be switched to it.

        Raises:
            InvalidRequest: unknown, broken, of another model, or not on the operator's list.
        """
        choices = self.choices(model)
        if name in choices:
            return self.profiles[name]
        if name in self.broken:
            raise InvalidRequest(f"profile '{name}' cannot be used: {self.broken[name]}", "profile")
        if name in self.profiles and self.profiles[name].served_as != model:
            other = self.profiles[name].served_as
            raise InvalidRequest(f"profile '{name}' serves '{other}', not '{model}'", "profile")
        raise InvalidRequest(
            f"'{name}' is not a profile that '{model}' may be switched to; there are: "
            f"{', '.join(choices) or 'none'}",
            "profile",
        )
