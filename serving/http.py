"""The web application of a replica: its routes, the page, health, limits of every request, errors in one shape."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from serving.errors import RequestError
from serving.routes import make_router

if TYPE_CHECKING:
    from serving.service import Ingress

PAGE = Path(__file__).parent / "page" / "index.html"
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' blob: data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def make_app(service: Ingress) -> FastAPI:
    """The ASGI application of a replica."""
    app = FastAPI(
        title="CLIP on Ray",
        version="1",
        summary="Classify pictures by words that nobody trained the model for.",
        docs_url=None,
        redoc_url=None,
    )
    limits = service.settings.limits
    if service.settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=service.settings.cors_origins, allow_methods=["*"],
                           allow_headers=["authorization", "content-type"])  # fmt: skip
    app.add_middleware(BodyLimit, limit=limits.images * (limits.image_bytes * 4 // 3 + 1024) + (1 << 20))
    app.middleware("http")(_watched(service))
    for kind in (RequestError, RequestValidationError, HTTPException, Exception):
        app.exception_handler(kind)(_answer_error)

    app.include_router(make_router(service))

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(), headers=PAGE_HEADERS)

    @app.get("/healthz", summary="Whether this process answers")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Whether every model is loaded and gives embeddings")
    async def readyz() -> dict[str, Any]:
        models = await service.models()
        for name, described in models.items():
            side = described["image_size"]
            embedding_ND = await service.embed(name, "image", np.zeros((1, 3, side, side), np.uint8))
            if not math.isclose(float(np.linalg.norm(embedding_ND)), 1.0, rel_tol=1e-3):
                raise RequestError(503, "model", f"model {name!r} gives no embedding of unit length")
        return {"status": "ok", "models": sorted(models)}

    return app


def _watched(service: Ingress) -> Callable[..., Awaitable[Response]]:
    """Give up what takes too long, and count outcomes by route."""

    async def watch(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            async with asyncio.timeout(service.settings.limits.request_s):
                response = await call_next(request)
        except TimeoutError:
            seconds = service.settings.limits.request_s
            response = _error(RequestError(504, "", f"no answer within {seconds:g} s; send fewer pictures or classes"))
        route = request.scope.get("route")
        handler = getattr(route, "path", "other")
        service.requests.inc(1, {"handler": handler, "status": str(response.status_code)})
        return response

    return watch


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    """Every error in one shape."""
    if isinstance(error.__cause__, RequestError):  # FastAPI's own stands for what went wrong while the body came in.
        error = error.__cause__
    if isinstance(error, RequestError):
        return _error(error)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
        return _error(RequestError(422, field, first["msg"]))
    if isinstance(error, HTTPException):
        return _error(RequestError(error.status_code, "", str(error.detail)))
    return _error(RequestError(500, "", "the server made a mistake; its log says more"))


def _error(error: RequestError) -> JSONResponse:
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s is not None else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error.body()}, error.status, headers)


class BodyLimit:
    """Refuses a request body that is longer than any good one, as soon as that is known.

    Parameters
    ----------
    app : ASGI application
    limit : bytes
    """

    def __init__(self, app: Any, limit: int):
        self._app, self._limit = app, limit

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._limit:
            await self._refuse(scope, receive, send)
            return
        received = 0

        async def counted() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise RequestError(413, "", f"the request has more than {self._limit:,} bytes")
            return message

        await self._app(scope, counted, send)

    async def _refuse(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        await _error(RequestError(413, "", f"the request has more than {self._limit:,} bytes"))(scope, receive, send)
