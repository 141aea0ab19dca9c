"""Where it listens, and how requests end."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings


class Listeners(BaseSettings):
    host: str = Field(default="127.0.0.1", description="Bind address of the public listener.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port of the public listener.")
    admin_host: str = Field(default="127.0.0.1", description="Bind address of the admin listener.")
    admin_port: int = Field(
        default=8001, ge=0, le=65535, description="Port of the admin listener: /metrics."
    )
    page: bool = Field(
        default=True, description="The pages at `/` of both listeners: docs/page.md. false: none."
    )
    keep_alive_s: float = Field(
        default=15, ge=0, description="A comment on streams silent for so long, seconds. 0: none."
    )
    drain_timeout_s: float = Field(
        default=30, ge=0, description="After SIGTERM: how long running requests may go on, seconds."
    )
    max_connections: int = Field(
        default=1024,
        ge=1,
        description="Most open connections of a listener; above: 503. 64 more may ask the probes.",
    )
    header_timeout_s: float = Field(
        default=10, gt=0, description="How long the headers of a request may take, seconds."
    )
    body_timeout_s: float = Field(
        default=60,
        gt=0,
        description="How long the body of a request may take, seconds; above: 408.",
    )
    idle_timeout_s: int = Field(
        default=75, ge=1, description="An unused connection is closed after so many seconds."
    )
    write_timeout_s: float = Field(
        default=60,
        gt=0,
        description="A caller that reads nothing for so long is cut off, and its work ended, seconds.",
    )
    tls_cert: Path | None = Field(
        default=None,
        description="Certificate chain (PEM) of the public listener. Unset: plain HTTP. Read anew on reload.",
    )
    tls_key: Path | None = Field(default=None, description="Its private key (PEM).")
