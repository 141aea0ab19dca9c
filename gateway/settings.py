"""Everything that can be set from outside, in one frozen object.

vLLM's own flags are not here: they are in profiles (`engine_config/profiles/*.yaml`), one reason and
one source for each value that differs from vLLM's default.
"""

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Literal, Self

from dotenv import dotenv_values
from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway.thinking.effort import Frame

PREFIX = "GATEWAY_"
# Ours too, but read by the model builder, which knows nothing of this object.
BUILDER_VARIABLES = {"GATEWAY_CACHE_DIR", "GATEWAY_MODEL_SOURCES"}


class Settings(BaseSettings):
    """The one settings object. Frozen: a change needs a restart, so logs never lie."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True
    )

    host: str = Field(default="127.0.0.1", description="Bind address of the public listener.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port of the public listener.")
    admin_host: str = Field(default="127.0.0.1", description="Bind address of the admin listener.")
    admin_port: int = Field(
        default=8001, ge=0, le=65535, description="Port of the admin listener: /metrics."
    )
    profiles: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("demo",),
        min_length=1,
        description="Profiles to serve, comma-separated; the first is the default model.",
    )
    profiles_dir: Path | None = Field(
        default=None,
        description="A folder of your own profiles, looked at before the shipped ones.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="The key callers must send, 16 characters or more. Unset: no check, loopback only.",
    )
    max_body_bytes: int = Field(
        default=4 * 1024 * 1024, ge=1024, description="Largest request body, bytes; above: 413."
    )
    max_json_depth: int = Field(default=64, ge=4, description="Deepest nesting of a request body.")
    max_n: int = Field(default=16, ge=1, description="Most completions of one request (`n`).")
    max_output_tokens: int = Field(
        default=131_072, ge=1, description="Most tokens one request may ask for."
    )
    max_stop_strings: int = Field(default=16, ge=1, description="Most `stop` strings.")
    max_logprobs: int = Field(default=20, ge=0, description="Most `logprobs` / `top_logprobs`.")
    max_prompts: int = Field(
        default=64, ge=1, description="Most prompts in one `/v1/completions` request."
    )
    max_messages: int = Field(default=2048, ge=1, description="Most messages of one request.")
    max_tools: int = Field(default=128, ge=1, description="Most tools of one request.")
    max_batch_requests: int = Field(
        default=64, ge=1, description="Most requests in one `/batch_generate` call."
    )
    thinking_default_depth: int | None = Field(
        default=None,
        ge=0,
        le=5,
        description="Depth of /v1 requests that ask for none, 0 to 5. Unset: the profile's.",
    )
    thinking_ceiling: int | None = Field(
        default=None, ge=0, description="Most thinking tokens of any request, whatever it asks for."
    )
    thinking_guarantee: bool = Field(
        default=True,
        description="Bound thinking on /v1 routes and always answer. false: vLLM's own behaviour.",
    )
    reasoning_fields: Literal["both", "reasoning", "reasoning_content"] = Field(
        default="both",
        description="Field of the thought in chat completions: vLLM's and OpenRouter's `reasoning`, "
        "DeepSeek's and LiteLLM's `reasoning_content`, or both.",
    )
    keep_alive_s: float = Field(
        default=15, ge=0, description="A comment on streams silent for so long, seconds. 0: none."
    )
    drain_timeout_s: float = Field(
        default=30, ge=0, description="After SIGTERM: how long running requests may go on, seconds."
    )
    engine_hang_s: float = Field(
        default=120,
        gt=0,
        description="Requests run but no token came for this long: not ready. Twice as long: restart.",
    )
    rebuild_backoff_s: float = Field(
        default=1, ge=0, description="Wait before rebuilding a dead engine; doubles up to a minute."
    )
    rebuild_attempts: int = Field(
        default=5, ge=1, description="Failed rebuilds in a row after which /health/live fails."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="What is logged: DEBUG, INFO, WARNING or ERROR."
    )

    def thinking_frame(self, default: int) -> Frame:
        """What the operator allows; `default` is the profile's depth."""
        given = self.thinking_default_depth
        return Frame(default if given is None else given, self.thinking_ceiling)

    @field_validator("profiles", mode="before")
    @classmethod
    def split_commas(cls, value: object) -> object:
        """`GATEWAY_PROFILES=demo,nano-qwen3`; the command line gives a tuple."""
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("api_key", mode="before")
    @classmethod
    def empty_is_unset(cls, value: object) -> object:
        """`GATEWAY_API_KEY=` in a copied .env is no key."""
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
        """Beyond loopback anybody may call; that needs a key."""
        for name, host in (("host", self.host), ("admin_host", self.admin_host)):
            if self.api_key is None and not is_loopback(host):
                raise ValueError(
                    f"{name} {host} is reachable from other machines and no key is set. Set "
                    "GATEWAY_API_KEY to a secret of your own (openssl rand -hex 32 makes one), "
                    "or bind to 127.0.0.1"
                )
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address. Unknown names count as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
