"""Everything that can be set from outside, in one frozen object. The fields are in the modules beside this.

vLLM's own flags are not here: they are in profiles (`engine_config/profiles/*.yaml`), one reason and
one source for each value that differs from vLLM's default.
"""

import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import (
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import SettingsConfigDict

from engine_config.bind_cores import cores_of
from gateway.settings.access import Access
from gateway.settings.admission import Admission
from gateway.settings.bounds import Bounds
from gateway.settings.engines import Engines
from gateway.settings.listeners import Listeners
from gateway.settings.observability import Observability
from gateway.settings.thinking import Thinking
from gateway.thinking.effort import Frame

PREFIX = "GATEWAY_"
# Public-key signatures. Not "none", and none with a shared secret (HS256): a public key could be that.
SIGNATURES = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"}
# Ours too, but read by the model builder, which knows nothing of this object.
BUILDER_VARIABLES = {"GATEWAY_CACHE_DIR", "GATEWAY_MODEL_SOURCES"}


# `GATEWAY_API_KEY=` in a copied .env is no key, and so on.
EMPTY_IS_UNSET = (
    *("api_key", "admin_key", "keys_file", "redis_url", "usage_url", "audit_log"),
    *("trace_endpoint", "tls_cert", "tls_key"),
)
LISTS = ("profiles", "switch_profiles", "jwt_algorithms", "trusted_hosts", "cors_origins")

# What a reload cannot change, and why. Everything else is read anew where it is used.
FIXED = {
    "host": "the socket is bound",
    "port": "the socket is bound",
    "admin_host": "the socket is bound",
    "admin_port": "the socket is bound",
    **dict.fromkeys(("idle_timeout_s", "cors_origins"), "the listeners are made"),
    **dict.fromkeys(
        ("tls_cert", "tls_key"), "the listener is made; what is in the files is read anew"
    ),
    "profiles": "engines are loaded; `gateway switch` changes one while it serves",
    "profiles_dir": "the profiles in service come from it",
    "page": "the routes are built",
    "slot_cores": "engines are bound when they start",
    "log_format": "engines write so already",
    **dict.fromkeys(("trace_endpoint", "trace_protocol", "trace_sample"), "it is in use already"),
    "metrics": "counters that begin in the middle would tell half",
    "metrics_tenants": "names that were told stay told",
    **dict.fromkeys(
        ("redis_url", "redis_away", "state_dir", "usage_url", "audit_log"), "it is open already"
    ),
    **dict.fromkeys(
        ("jwt_issuer", "jwt_audience", "jwt_jwks_url", "jwt_tenant_claim", "jwt_algorithms"),
        "tokens already accepted would stay so",
    ),
}


class Settings(Observability, Engines, Admission, Thinking, Bounds, Access, Listeners):
    """The one settings object. Frozen for everybody but `gateway/reload.py`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True
    )

    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    @classmethod
    def of(cls, **given: Any) -> Self:
        """Settings of the command line, which beats the environment and `.env`, also on reload."""
        settings = cls(**given)
        settings._given = given
        return settings

    def reread(self) -> Self:
        """The settings as a start would find them now.

        Raises:
            ValidationError: a start would be refused.
        """
        return self.of(**self._given)

    def adopt(self, fresh: Self, names: Iterable[str]) -> None:
        """Take over those fields; whoever holds this object sees them at once."""
        for name in names:
            self.__dict__[name] = getattr(fresh, name)

    def thinking_frame(self, default: int, ceiling: int | None = None) -> Frame:
        """What the operator allows; `default` is the profile's depth, `ceiling` the tenant's."""
        given = self.thinking_default_depth
        ceilings = [each for each in (self.thinking_ceiling, ceiling) if each is not None]
        return Frame(default if given is None else given, min(ceilings, default=None))

    @property
    def state(self) -> Path:
        return Path(
            os.path.expanduser(self.state_dir)
        )  # unlike Path's own, it takes a user without a home

    @field_validator(*LISTS, mode="before")
    @classmethod
    def split_commas(cls, value: object) -> object:
        """`GATEWAY_PROFILES=demo,nano-qwen3`; the command line gives a tuple."""
        return tuple(filter(None, value.split(","))) if isinstance(value, str) else value

    @field_validator("slot_cores", mode="before")
    @classmethod
    def split_semicolons(cls, value: object) -> object:
        """`GATEWAY_SLOT_CORES=0-3;4-7`: a set has commas of its own."""
        return tuple(filter(None, value.split(";"))) if isinstance(value, str) else value

    @field_validator("slot_cores")
    @classmethod
    def cores_exist(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        ours = os.sched_getaffinity(0)
        for text in value:
            if missing := cores_of(text) - ours:
                raise ValueError(f"'{text}': this process has no core {min(missing)}")
        return value

    @field_validator("redis_url")
    @classmethod
    def redis_is_meant(cls, value: SecretStr | None) -> SecretStr | None:
        """Without the URL in the message: it may have a password."""
        schemes = ("redis://", "rediss://", "unix://")
        if value is not None and not value.get_secret_value().startswith(schemes):
            raise ValueError(f"it begins with none of {', '.join(schemes)}")
        return value

    @field_validator("cors_origins")
    @classmethod
    def origins_are_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            url = urlsplit(origin)
            if url.scheme not in ("http", "https") or origin != f"{url.scheme}://{url.netloc}":
                raise ValueError(f"'{origin}' is no origin; write https://chat.example.com")
        return value

    @field_validator(*EMPTY_IS_UNSET, mode="before")
    @classmethod
    def empty_is_unset(cls, value: object) -> object:
        return value or None

    @model_validator(mode="after")
    def reject_unknown_variables(self) -> Self:
        """Refuse `GATEWAY_PROT=8001`: pydantic-settings drops unknown variables in silence."""
        known = {f"{PREFIX}{name}".upper() for name in type(self).model_fields} | BUILDER_VARIABLES
        given = {*os.environ, *dotenv_values(".env")}
        ours = {name for name in given if name.startswith(PREFIX)}
        if unknown := sorted(ours - known):
            raise ValueError(f"unknown settings in the environment or .env: {', '.join(unknown)}")
        return self

    @model_validator(mode="after")
    def refuse_open_binding(self) -> Self:
        self.require_key()
        return self

    def require_key(self) -> None:
        """Beyond loopback anybody may call; that needs a key.

        Raises:
            ValueError: such a binding, and no key.
        """
        for name, host in (("host", self.host), ("admin_host", self.admin_host)):
            if not (self.api_key or self.keys_file or self.jwt_issuer) and not is_loopback(host):
                raise ValueError(
                    f"{name} {host} is reachable from other machines and no key is set. Set "
                    "GATEWAY_API_KEY to a secret of your own (openssl rand -hex 32 makes one), "
                    "or GATEWAY_KEYS_FILE (`gateway keys create` writes it), or bind to 127.0.0.1"
                )

    @model_validator(mode="after")
    def tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together; one of them is not set")
        return self

    @model_validator(mode="after")
    def tokens_are_checked_whole(self) -> Self:
        """An issuer alone would take tokens meant for others; a shared secret is no issuer's signature."""
        if self.jwt_issuer is None:
            return self
        url = urlsplit(self.jwt_jwks_url or "")
        if url.scheme != "https" and not (url.scheme == "http" and is_loopback(url.hostname or "")):
            raise ValueError("jwt_issuer needs jwt_jwks_url: https, or http on loopback")
        if not self.jwt_audience:
            raise ValueError("jwt_issuer needs jwt_audience: tokens for others are not for us")
        if foreign := sorted(set(self.jwt_algorithms) - SIGNATURES):
            raise ValueError(
                f"jwt_algorithms takes {', '.join(sorted(SIGNATURES))}; not {foreign[0]}"
            )
        return self


def complaints(error: ValidationError) -> list[str]:
    """What is wrong with the settings, a sentence for each variable."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        text = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{PREFIX}{where.upper()}: {text}" if where else text)
    return lines


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address. Unknown names count as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
