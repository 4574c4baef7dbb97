"""What keeps the search page alive and private: which requests are refused, and which connections are closed.

`Guard` is a layer of the ASGI application; `Protocol` is how uvicorn speaks HTTP. Uvicorn itself has no limits of time
for a request's head, its body, or a client that does not read the answer.
"""

import asyncio
import html
import re
import sys
import tempfile
import time
from pathlib import Path
from string import Template
from typing import Any

import anyio
import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from clamplib.app.slots import ENDING
from clamplib.files import InputError

MAX_UPLOAD = 50 * 2**20  # bytes
BODY_SECONDS = 300.0  # for a whole body
PAUSE_SECONDS = 10.0  # between two parts of a body
HEAD_SECONDS = 10.0  # for the head of a request; it may take up to twice as long
STALL_SECONDS = 60.0  # in which a client reads nothing of an answer
HEADERS = {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
ERROR_PAGE = Path(__file__).with_name("page") / "error.html"


class Guard:
    """Refuses requests of other sites and uploads that are too large or too slow, and adds HEADERS to every answer."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False

        async def send_guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        error = _fault(headers, scope["path"])
        answer = refusal(headers, error) if error else self.app
        try:
            await answer(scope, _in_time(receive), send_guarded)
        except asyncio.CancelledError:  # the server ends
            if not started:
                await refusal(headers, HTTPException(503, ENDING))(scope, receive, send)


def _fault(headers: Headers, path: str) -> HTTPException | None:
    """Returns why a request is refused by its head, if it is."""
    sizes = headers.getlist("content-length")
    if len(sizes) > 1 or not all(size.isascii() and size.isdecimal() for size in sizes):
        return HTTPException(400, f"expected one Content-Length in bytes, got {', '.join(sizes)[:40]!r}")
    if sizes and (len(sizes[0]) > 12 or int(sizes[0]) > MAX_UPLOAD):
        return HTTPException(413)
    if path.startswith("/api/") and _is_foreign(headers):
        return HTTPException(403, "expected a request from the search page, got one from another site")
    return None


def _is_foreign(headers: Headers) -> bool:
    """Whether a browser sent the request for a page of another site. Old browsers state the origin only."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("none", "same-origin")
    own = headers.get("host", "").lower()
    return any(origin.partition("://")[2].lower() != own for origin in headers.getlist("origin"))


def _in_time(receive: Receive) -> Receive:
    """Returns a `receive` that raises HTTPException 408 if the body comes too slowly."""
    began: float | None = None
    whole = False

    async def receive_in_time() -> Message:
        nonlocal began, whole
        if whole:  # it waits for the client to leave
            return await receive()
        now = time.monotonic()
        began = now if began is None else began
        try:
            with anyio.fail_after(min(PAUSE_SECONDS, began + BODY_SECONDS - now)):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, "the upload is too slow") from error
        whole = not message.get("more_body", False)
        return message

    return receive_in_time


def refusal(asked: Headers, error: Exception) -> Response:
    """Answers with an error as JSON for the page to show, or as HTML if the browser asks for a page."""
    status = 500
    text = "the server failed; see the terminal that it runs in"
    if isinstance(error, InputError):
        status = 400
        text = _without_folders(str(error))
    elif isinstance(error, HTTPException):
        status = error.status_code
        text = error.detail
    if status == 413:
        text = f"expected at most {MAX_UPLOAD // 2**20} MB"
    if "text/html" not in asked.get("accept", ""):
        return JSONResponse({"error": text}, status, HEADERS)
    page = Template(ERROR_PAGE.read_text(encoding="utf-8"))
    return HTMLResponse(page.substitute(reason=html.escape(text)), status, HEADERS)


def _without_folders(text: str) -> str:
    """Removes the folders from the paths of this machine in a message. Those of the collection are shown by name."""
    private = {tempfile.gettempdir(), sys.prefix, sys.base_prefix, str(Path.home()), str(ERROR_PAGE.parents[3])}
    roots = "|".join(re.escape(folder) for folder in sorted(private, key=len, reverse=True) if len(folder) > 1)
    return re.sub(rf"(?:{roots})/(?:[^/\s'\"]+/)*", "", text)


class Protocol(H11Protocol):
    """HTTP/1.1, which also closes the connections of clients that send no request, or read no answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._idle: Any = None  # the request after which the connection was idle at the last look; None: the first
        self._look = self.loop.call_later(HEAD_SECONDS, self._close_if_idle)
        self._stall: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._look.cancel()
        if self._stall:
            self._stall.cancel()
        super().connection_lost(exc)

    def _close_if_idle(self) -> None:
        """Closes a connection that has had no request since the last look. What it sent is part of a head, or left
        over from a request that was refused."""
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._idle is self.cycle:
            self.transport.abort()
            return
        self._idle = self.cycle if idle else self
        self._look = self.loop.call_later(HEAD_SECONDS, self._close_if_idle)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stall.cancel()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # it has answered already
            self.transport.abort()
