"""The web application of a replica: its routes, the page, health, limits of every request, errors in one shape."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI, Request
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
    body_bytes = limits.images * (limits.image_bytes * 4 // 3 + 1024) + (1 << 20)
    app.add_middleware(Watch, service=service, body_bytes=body_bytes)
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
            embedding_ND = await service.embed(name, "image", [np.zeros((3, side, side), np.uint8)])
            if not math.isclose(float(np.linalg.norm(embedding_ND)), 1.0, rel_tol=1e-3):
                raise RequestError(503, "model", f"model {name!r} gives no embedding of unit length")
        return {"status": "ok", "models": sorted(models)}

    return app


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


class Watch:
    """Bounds a request's bytes and its time, and counts outcomes by route.

    Parameters
    ----------
    app : ASGI application
    service : told of outcomes
    body_bytes : longer than any good request
    """

    def __init__(self, app: Any, service: Ingress, body_bytes: int):
        self._app, self._service, self._body_bytes = app, service, body_bytes
        self._seconds = service.settings.limits.request_s

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0
        received, left = 0, False

        async def heard() -> Any:
            nonlocal received, left
            message = await receive()
            left = left or message["type"] == "http.disconnect"
            received += len(message.get("body", b""))
            if received > self._body_bytes:
                raise self._too_long()
            return message

        async def sent(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            async with asyncio.timeout(self._seconds):
                declared = dict(scope["headers"]).get(b"content-length", b"0")
                if declared.isdigit() and int(declared) > self._body_bytes:
                    await _error(self._too_long())(scope, receive, sent)
                else:
                    await self._app(scope, heard, sent)
        except TimeoutError:
            if status:
                raise
            late = RequestError(504, "", f"no answer within {self._seconds:g} s; send fewer pictures or classes")
            await _error(late)(scope, receive, sent)
        except asyncio.CancelledError:  # Serve ends the request of a client that has left.
            left = True
            raise
        finally:
            handler = getattr(scope.get("route"), "path", "other")
            # 499 is nginx's number for a client that did not wait for its answer.
            self._service.requests.inc(1, {"handler": handler, "status": str(status or (499 if left else 500))})

    def _too_long(self) -> RequestError:
        return RequestError(413, "", f"the request has more than {self._body_bytes:,} bytes")
