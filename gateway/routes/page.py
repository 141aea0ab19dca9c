"""`GET /`: the page to watch a model think; on the admin listener, the page to switch models.

Static files of `gateway/web`, read once. The policy lets the browser load and run these and nothing else.
"""

from collections.abc import Mapping

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.web import ADMIN_FILES, PUBLIC_FILES, Asset, read

# Scripts and styles are our own files, never inline; strings become HTML through DOMPurify's policy only.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # kept, but asked about: a new gateway brings a new page
}
METHODS = ["GET", "HEAD"]


def page_router() -> APIRouter:
    """The public listener's page."""
    return _router(PUBLIC_FILES)


def admin_page_router() -> APIRouter:
    """The admin listener's page."""
    return _router(ADMIN_FILES)


def _router(served: Mapping[str, str]) -> APIRouter:
    """A route for each file: what is not named does not exist."""
    router = APIRouter(include_in_schema=False)
    assets = read(served)

    async def send(request: Request) -> Response:
        return _response(assets[request.scope["route"].path], request.headers.get("if-none-match"))

    for path in served:
        router.add_api_route(path, send, methods=METHODS)
    return router


def _response(asset: Asset, known: str | None) -> Response:
    headers = {**HEADERS, "etag": asset.etag}
    if known is not None and asset.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers, media_type=asset.media_type)
