"""The routes that are served, read from the apps, so that no list of them can fall behind."""

from collections.abc import Iterable, Iterator

from starlette.routing import BaseRoute, Mount, Route

from gateway.routes.openai import FORWARDED, MODELS
from gateway.web import ADMIN_FILES, PUBLIC_FILES
from tests.scripted import ScriptedEngine, make_admin, make_gateway

# For a browser.
PAGES = {"/docs", "/openapi.json", *PUBLIC_FILES, *ADMIN_FILES}


def public_routes() -> set[str]:
    """`METHOD /path` of each, a parameter as {name}."""
    app = make_gateway(ScriptedEngine()).app
    openai = {f"{method} {path}" for path, methods in FORWARDED.items() for method in methods}
    models = {f"GET {MODELS}", f"GET {MODELS}/{{model}}"}
    return {*_named(app.routes), *openai, *models}


def admin_routes() -> set[str]:
    return set(_named(make_admin(make_gateway(ScriptedEngine())).routes))


def _named(routes: Iterable[BaseRoute]) -> Iterator[str]:
    for route in routes:
        if isinstance(route, Mount):  # OpenAI's
            continue
        assert isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}:
            yield f"{method} {route.path}"
