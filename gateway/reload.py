"""SIGHUP and `POST /admin/reload`: settings, keys and profiles are read anew.

What cannot change while the gateway runs is refused with the reason, and named, so that nobody believes it
did. A file that cannot be used makes the whole reload fail: nothing is changed then.
"""

import asyncio
import logging
from typing import Any

from pydantic import SecretStr, ValidationError

from engine_config.profile import Profile
from gateway.engines.catalogue import Catalogue
from gateway.engines.fleet import Fleet
from gateway.engines.served import ServedModel
from gateway.errors import InvalidRequest
from gateway.observability.logs import set_level
from gateway.policy.keyfile import KeysFile, KeysFileError
from gateway.policy.keyring import Keyring, Stamp
from gateway.settings import FIXED, PREFIX, Settings, complaints
from gateway.settings.observability import LogLevel
from gateway.tls import Certificate, CertificateError

log = logging.getLogger(__name__)

# Of a profile in service: read at each request, so they may change under a loaded engine.
LIVE = ("title", "thinking_max_tokens", "thinking_default", "rank", "elsewhere")


class Reloader:
    """Compares what is in force with what a start would find, and takes over what it may."""

    def __init__(
        self, settings: Settings, fleet: Fleet, catalogue: Catalogue, keyring: Keyring
    ) -> None:
        self.settings = settings
        self.fleet = fleet
        self.catalogue = catalogue
        self.keyring = keyring
        self.certificate: Certificate | None = None

    async def reload(self) -> dict[str, Any]:
        """What changed, and what was refused and why. Files are read off the event loop.

        Raises:
            InvalidRequest: a setting or a profile cannot be used; nothing was changed.
        """
        fresh = self._settings()
        keys = await self._keys(fresh)
        good, broken = await asyncio.to_thread(self.catalogue.read)
        if broken:
            raise InvalidRequest(
                f"nothing was changed: {'; '.join(broken.values())}", next(iter(broken))
            )
        told: dict[str, list[Any]] = {"changed": [], "refused": []}
        if self.certificate is not None and await asyncio.to_thread(self._certificate):
            told["changed"].append("the certificate")
        self._adopt_settings(fresh, told)
        told["changed"] += self.keyring.adopt(*keys)
        added, removed = (
            good.keys() - self.catalogue.profiles,
            self.catalogue.profiles.keys() - good,
        )
        told["changed"] += [f"profile {name} is new" for name in sorted(added)]
        told["changed"] += [f"profile {name} is gone" for name in sorted(removed)]
        self.catalogue.adopt(good, broken)
        for model in self.fleet.models.values():
            self._adopt_profile(model, good.get(model.profile.name), told)
        log.warning("reloaded: changed %s; refused %s", told["changed"], told["refused"])
        return told

    def log_level(self, level: LogLevel) -> None:
        """Log from that level on, until the next reload finds another or the process ends."""
        before = self.settings.log_level
        self.settings.adopt(self.settings.model_copy(update={"log_level": level}), ["log_level"])
        set_level(level)
        log.warning("the log level is %s; it was %s", level, before)

    def _settings(self) -> Settings:
        try:
            fresh = self.settings.reread()
        except ValidationError as error:
            raise InvalidRequest(f"nothing was changed: {'; '.join(complaints(error))}") from error
        # What stays and what changes must go together, too: no key may go while the binding is open.
        kept = {name: getattr(self.settings, name) for name in FIXED}
        try:
            fresh.model_copy(update=kept).require_key()
        except ValueError as error:
            raise InvalidRequest(f"nothing was changed: {error}") from error
        return fresh

    def _certificate(self) -> bool:
        assert self.certificate is not None
        try:
            return self.certificate.reread()
        except CertificateError as error:
            raise InvalidRequest(f"nothing was changed: {error}", "tls_cert") from error

    async def _keys(self, fresh: Settings) -> tuple[KeysFile, Stamp]:
        try:
            return await asyncio.to_thread(self.keyring.read, fresh)
        except KeysFileError as error:
            raise InvalidRequest(f"nothing was changed: {error}", "keys_file") from error

    def _adopt_settings(self, fresh: Settings, told: dict[str, list[Any]]) -> None:
        names = [
            name
            for name in type(fresh).model_fields
            if getattr(fresh, name) != getattr(self.settings, name)
        ]
        for name in names:
            variable = f"{PREFIX}{name.upper()}"
            if name in FIXED:
                reason = f"{FIXED[name]}; a restart takes it over"
                told["refused"].append({"name": variable, "reason": reason})
            else:
                told["changed"].append(f"{variable} is {_shown(getattr(fresh, name))}")
        self.settings.adopt(fresh, [name for name in names if name not in FIXED])
        set_level(self.settings.log_level)

    def _adopt_profile(
        self, model: ServedModel, fresh: Profile | None, told: dict[str, list[Any]]
    ) -> None:
        """The profile in service: what requests read of it is taken over, the engine's part is not."""
        name = model.profile.name
        if fresh is None:
            reason = "it is gone from the disk; the engine goes on with what it had"
            told["refused"].append({"name": f"profile {name}", "reason": reason})
            return
        live = {key: getattr(fresh, key) for key in LIVE if _differs(key, fresh, model.profile)}
        if live:
            mixed = model.profile.model_copy(update=live)
            model.profile = mixed
            if model.slot is not None:
                model.slot.profile = mixed
            told["changed"] += [f"profile {name}: {key} is {value}" for key, value in live.items()]
        if model.profile != fresh:
            reason = f"the engine has to be loaded anew: gateway switch {model.name} {name}"
            told["refused"].append({"name": f"profile {name}", "reason": reason})


def _differs(key: str, fresh: Profile, now: Profile) -> bool:
    return bool(getattr(fresh, key) != getattr(now, key))


def _shown(value: object) -> str:
    return "set to another secret" if isinstance(value, SecretStr) else str(value)
