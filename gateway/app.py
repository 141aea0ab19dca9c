"""The whole machine in a screenful: read this first.

    listener (time-outs, connections) -> Edge (request id, errors, observation) -> KnownHost
             -> RequireKey (whose key?) -> JsonBody (size limit)
             -> HoldLimits (the tenant's; settled when it is over)
             -> native routes /generate /thinking /batch_generate /health /stats, and the page at /
             -> OpenAI routes /v1/*: an allowlist in front of the slot's own vLLM app

Nothing is global: everything hangs on the app that `create_app` returns.
"""

import logging
from typing import NoReturn

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from gateway import __version__
from gateway.accounting.audit import NoteAsked
from gateway.asgi import Edge, Exchange
from gateway.body import JsonBody
from gateway.engines.fleet import Fleet
from gateway.engines.switcher import Switcher
from gateway.errors import InvalidRequest, MethodNotAllowed, NotFound, from_validation
from gateway.observability import collectors
from gateway.observability.figures import Figures
from gateway.observability.live import Live
from gateway.observability.logs import AccessLog
from gateway.observability.queue_figures import QueueFigures
from gateway.observability.spans import UNTRACED, Tracer
from gateway.policy.hosts import KnownHost
from gateway.policy.keys import PUBLIC, RequireKey
from gateway.policy.limits import HoldLimits
from gateway.reload import Reloader
from gateway.routes import (
    admin,
    admin_usage,
    batch_generate,
    generate,
    health,
    stats,
    thinking,
    thinking_offer,
)
from gateway.routes.openai import OpenAIRoutes
from gateway.routes.page import admin_page_router, page_router
from gateway.settings import Settings
from gateway.tenancy import Tenancy
from gateway.thinking.running import Running

# What a web page of another origin may read of an answer's headers.
EXPOSED = (
    *("x-request-id", "retry-after", "x-model-profile", "x-model-format"),
    *("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    *("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
)

log = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    fleet: Fleet,
    figures: Figures,
    tenancy: Tenancy,
    tracer: Tracer = UNTRACED,
) -> FastAPI:
    """The public app."""
    app = _app("Thinking gateway", settings, fleet, figures)
    for module in (generate, thinking, thinking_offer, batch_generate, health, stats):
        app.include_router(module.router)
    if settings.page:
        app.include_router(page_router())
    native = {route.path: route.methods for route in app.routes if isinstance(route, APIRoute)}
    app.mount("", OpenAIRoutes(fleet, settings, app.state.running, native))

    QueueFigures(fleet, figures)
    collectors.register(figures, settings, fleet, tenancy)
    app.state.live = Live(fleet, figures.requests, app.state.running)

    observers = [tenancy.usage.observe, *([figures.observe] if settings.metrics else [])]
    observers += [AccessLog(settings).observe, tracer.observe]

    def observe(exchange: Exchange) -> None:
        for each in observers:
            try:
                each(exchange)
            except Exception:  # the answer, and the other observers, must not suffer
                log.exception("request %s could not be counted", exchange.request_id)

    # Added last is outermost.
    app.add_middleware(HoldLimits, settings=settings, fleet=fleet, ledger=tenancy.ledger)
    app.add_middleware(JsonBody, settings=settings)
    app.add_middleware(RequireKey, settings=settings, keyring=tenancy.keyring)
    app.add_middleware(
        KnownHost,
        keyring=tenancy.keyring,
        trusted=lambda: settings.trusted_hosts,
        open_paths=PUBLIC,
    )
    app.add_middleware(Edge, observe=observe, settings=settings, tracer=tracer)
    if settings.cors_origins:  # outside the edge, so that its errors have the headers too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=EXPOSED,
        )
    return app


def create_admin_app(
    fleet: Fleet, figures: Figures, switcher: Switcher, reloader: Reloader, tenancy: Tenancy
) -> FastAPI:
    """The admin listener's app: `/metrics`, and what an operator may change while it runs.

    Its requests are no user's, so they are not in the figures; those that change something are audited.
    """
    settings = fleet.settings
    app = _app("Thinking gateway, admin", settings, fleet, figures)
    app.state.switcher, app.state.reloader, app.state.tenancy = switcher, reloader, tenancy
    switcher.told = figures.switches.observe
    app.include_router(admin.router)
    app.include_router(admin_usage.router)
    if settings.page:
        app.include_router(admin_page_router())
    app.add_middleware(NoteAsked)
    app.add_middleware(JsonBody, settings=settings)
    app.add_middleware(RequireKey, settings=settings, keyring=tenancy.keyring, listener="admin")
    app.add_middleware(KnownHost, keyring=tenancy.keyring)
    app.add_middleware(Edge, observe=tenancy.audit.observe, settings=settings)
    return app


def _app(title: str, settings: Settings, fleet: Fleet, figures: Figures) -> FastAPI:
    app = FastAPI(
        title=title, version=__version__, redoc_url=None, swagger_ui_oauth2_redirect_url=None
    )
    app.state.settings, app.state.fleet, app.state.figures = settings, fleet, figures
    app.state.running = Running()
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
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
