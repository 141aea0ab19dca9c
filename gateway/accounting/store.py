"""The table of usage: SQLite in a file, or any database that SQLAlchemy knows by URL (PostgreSQL)."""

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
)
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from gateway.settings import Settings

BUSY_S = 10  # another process writes to the same SQLite file
CONNECT_S = 5
STATEMENT_S = 60
PIECE = 10_000  # rows deleted at once: whoever writes does not wait for long
# Of a PostgreSQL behind a connection that is cut without a word, libpq waits for hours.
POSTGRES = {
    "connect_timeout": CONNECT_S,
    "tcp_user_timeout": 15_000,  # milliseconds until what was sent must have arrived
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
FILE = "usage.db"
COUNTS = ("prompt_tokens", "cached_tokens", "thinking_tokens", "answer_tokens")

usage = Table(
    "gateway_usage",
    MetaData(),
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("time", DateTime(timezone=True), nullable=False),  # UTC, when the request came
    Column("day", String(10), nullable=False),  # of that, as 2026-11-24
    Column("request_id", String(128), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("key_id", String(80), nullable=False),
    Column("route", String(128), nullable=False),
    *(Column(name, String(256), nullable=False) for name in ("model", "profile", "format")),
    *(Column(name, Integer, nullable=False) for name in COUNTS),
    Column("outcome", String(16), nullable=False),
    Column("status", Integer, nullable=False),  # 0: the caller was gone before an answer
    *(Column(name, Float) for name in ("queue_s", "ttft_s", "total_s")),
    Index("gateway_usage_time", "time"),
)
GROUPS = {name: usage.c[name] for name in ("tenant", "key_id", "model", "format", "day")}


class UsageError(Exception):
    """The usage database cannot be read; the message says why, without its URL's password."""


def url_of(settings: Settings) -> URL | None:
    """Where rows go; None: nowhere.

    Raises:
        UsageError: the setting is no URL.
    """
    if settings.usage_url is None:
        return URL.create("sqlite", database=str(settings.state / FILE))
    given = settings.usage_url.get_secret_value()
    if given == "off":
        return None
    try:
        url = make_url(given)
    except ArgumentError as error:
        raise UsageError(
            "GATEWAY_USAGE_URL is no database URL, as sqlite:////folder/usage.db"
        ) from error
    # The driver that we name in our extra, not the one that SQLAlchemy would take for the bare name.
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


class UsageStore:
    """Opened at its first use, so that a database that is away does not keep the gateway from starting."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self._engine: Engine | None = None
        self._opening = threading.Lock()

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """All of them or none. Raises SQLAlchemyError or OSError."""
        with self._opened().begin() as connection:
            connection.execute(insert(usage), list(rows))

    def summary(self, by: str, since: datetime) -> list[dict[str, Any]]:
        """Sums by one of `GROUPS`, the largest first.

        Raises:
            UsageError: the database cannot be read.
        """
        group = GROUPS[by]
        sums = [func.sum(usage.c[name]).label(name) for name in COUNTS]
        failed = func.count().filter(usage.c.outcome != "ok").label("failed")
        query = (
            select(group.label(by), func.count().label("requests"), failed, *sums)
            .where(usage.c.time >= since.astimezone(UTC))
            .group_by(group)
            .order_by(group if by == "day" else func.sum(usage.c.answer_tokens).desc())
        )
        try:
            with self._opened().connect() as connection:
                return [dict(row) for row in connection.execute(query).mappings()]
        except (
            SQLAlchemyError,
            OSError,
            ImportError,
        ) as error:  # ImportError: the driver is missing
            raise UsageError(f"{shown(self.url)} cannot be read: {reason(error)}") from error

    def delete_before(self, when: datetime) -> int:
        """How many rows were older. Raises SQLAlchemyError or OSError."""
        old = select(usage.c.id).where(usage.c.time < when.astimezone(UTC)).limit(PIECE)
        total = 0
        while True:
            with self._opened().begin() as connection:
                gone = int(connection.execute(delete(usage).where(usage.c.id.in_(old))).rowcount)
            total += gone
            if gone < PIECE:
                return total

    def close(self) -> None:
        if self._engine is not None:
            self._engine.dispose()

    def _opened(self) -> Engine:
        with self._opening:
            if self._engine is None:
                self._engine = _open(self.url)
            return self._engine


def _open(url: URL) -> Engine:
    engine = create_engine(url, connect_args=_connect_args(url), pool_pre_ping=True)
    if url.get_backend_name() == "sqlite":
        _own_folder(url)
        event.listen(engine, "connect", _tune)
    elif url.get_backend_name() == "postgresql":
        event.listen(engine, "begin", _limit)
    usage.metadata.create_all(engine)
    return engine


def _connect_args(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"timeout": BUSY_S}
    if url.get_backend_name() != "postgresql":
        return {}
    return {name: value for name, value in POSTGRES.items() if name not in url.query}


def _own_folder(url: URL) -> None:
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)


def _tune(connection: Any, _: Any) -> None:
    """Readers do not wait for the writer; a power cut may cost the last second, not the file."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _limit(connection: Connection) -> None:
    """Of each transaction, since poolers in between do not take it for a whole connection."""
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{STATEMENT_S}s'")


def shown(url: URL) -> str:
    return url.render_as_string(hide_password=True)


def reason(error: Exception) -> str:
    """The driver's own sentence: SQLAlchemy's has the statement and its values in it."""
    lines = str(getattr(error, "orig", None) or error).splitlines()
    return lines[0][:200] if lines else type(error).__name__  # drivers raise some without a word
