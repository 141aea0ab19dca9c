"""The whole machine in a screenful: read this first.

    listener -> Edge (request id, errors, observation) -> RequireKey -> JsonBody (size limit)
             -> native routes /generate /thinking /batch_generate /health /stats
             -> OpenAI routes /v1/*: an allowlist in front of the slot's own vLLM app

Nothing is global: everything hangs on the app that `create_app` returns.
"""

from typing import NoReturn

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from gateway import __version__
from gateway.asgi import Edge
from gateway.body import JsonBody
from gateway.engines.fleet import Fleet
from gateway.errors import InvalidRequest, MethodNotAllowed, NotFound, from_validation
from gateway.observability.figures import Figures
from gateway.policy.keys import RequireKey
from gateway.routes import admin, batch_generate, generate, health, stats, thinking
from gateway.routes.openai import OpenAIRoutes
from gateway.settings import Settings
from gateway.thinking.running import Running


def create_app(settings: Settings, fleet: Fleet, figures: Figures) -> FastAPI:
    """The public app."""
    app = _app("Thinking gateway", settings, fleet, figures)
    for module in (generate, thinking, batch_generate, health, stats):
        app.include_router(module.router)
    native = {route.path: route.methods for route in app.routes if isinstance(route, APIRoute)}
    app.mount("", OpenAIRoutes(fleet, settings, app.state.running, native))
    return app


def create_admin_app(settings: Settings, fleet: Fleet, figures: Figures) -> FastAPI:
    """The admin listener's app: `/metrics`."""
    app = _app("Thinking gateway, admin", settings, fleet, figures)
    app.include_router(admin.router)
    return app


def _app(title: str, settings: Settings, fleet: Fleet, figures: Figures) -> FastAPI:
    app = FastAPI(
        title=title, version=__version__, redoc_url=None, swagger_ui_oauth2_redirect_url=None
    )
    app.state.settings, app.state.fleet, app.state.figures = settings, fleet, figures
    app.state.running = Running()
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_middleware(JsonBody, limit=settings.max_body_bytes)
    app.add_middleware(RequireKey, settings=settings)
    app.add_middleware(  # added last, so outermost
        Edge, observe=figures.observe, keep_alive_s=settings.keep_alive_s
    )
    return app


async def _on_invalid(request: Request, error: Exception) -> NoReturn:
    """The edge writes it down, in the shape of the path."""
    assert isinstance(error, RequestValidationError)
    raise from_validation(list(error.errors())) from error


async def _on_http(request: Request, error: Exception) -> NoReturn:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        raise NotFound(f"no route {request.method} {request.url.path}; /docs lists the routes")
    if error.status_code == 405:
        raise MethodNotAllowed(f"not with {request.method}", headers=error.headers)
    raise InvalidRequest(str(error.detail)) from error
