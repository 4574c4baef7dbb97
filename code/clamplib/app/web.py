"""The search page: a library's sources found by a sentence, by a file, or by one another, in a browser.

    serve(encoder, library, "music")  # http://127.0.0.1:8642

| path | what |
| --- | --- |
| GET /api/library | what there is to search |
| GET /api/search?q=&top_k=&modality= | the closest to a text |
| POST /api/search?top_k=&modality= | the closest to the file in the form's field `file` |
| GET /api/similar?source=&top_k=&modality= | the closest to a source |
| GET /api/notation.svg?source=, /api/roll.svg, /api/sound, /api/file | how a source looks and sounds |

A source is named by its path below the folder, and its tune (sub/book.abc#2), so that a link holds when others come.
An image, where the encoder has a captioner, is searched by its caption, which the answer tells.

Starlette, and not Gradio: that loads fonts and scripts from other hosts, and engraved scores, rolls and players in each
result would take as much code in it. The page (page/) is plain HTML, CSS and JavaScript, and works without a network.

What a stranger's page in the same browser could reach is closed: other host names (rebound ones too), requests from
other sites, frames. Of the disk only the library's own files are served, if they lie in the folder: what a request
names is looked up among them, and never opened.
"""

import html
import os
import shutil
import socket
import tempfile
import webbrowser
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import anyio
import numpy as np

from clamplib.app.previews import NARROW, WIDE, Previews, draw_roll, engrave, play
from clamplib.embedding.reading import IMAGE_SUFFIXES, MODALITIES, is_image
from clamplib.files import InputError, show
from clamplib.formats.score_files import Tune, title, tunes

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.datastructures import Headers, MutableHeaders, UploadFile
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise ImportError('the search page needs packages of its own: pip install "clamplib[web]"') from error

if TYPE_CHECKING:  # they bring torch with them
    from clamplib.embedding.collections import Library, Source
    from clamplib.embedding.encoder import CLaMP3Encoder

PAGE = Path(__file__).with_name("page")
PORT = 8642
HOSTS = ("localhost", "127.0.0.1", "[::1]")
MAX_UPLOAD = 50 * 2**20  # bytes
TOP_K, MAX_TOP_K = 20, 500
PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
PLAYABLE = {  # by browsers; other recordings are decoded here
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
    ".oga": "audio/ogg",
    ".opus": "audio/ogg",
    ".m4a": "audio/mp4",
    ".mp4": "audio/mp4",
    ".aac": "audio/aac",
    ".webm": "audio/webm",
}
HEADERS = {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
INERT = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"}  # for what files hold


def serve(
    encoder: "CLaMP3Encoder",
    library: "Library",
    folder: str | Path,
    host: str = "127.0.0.1",
    port: int = PORT,
    open_browser: bool = False,
) -> None:
    """Serves the search page of a library, whose sources lie in `folder`, until Ctrl+C. Port 0 is a free one.

    It answers to the names of this machine's loopback and to `host`: for others in the network name the address that
    they use (192.168.1.5, say; 0.0.0.0 is for containers, whose port is published on this machine). Whoever can
    reach it may search and read the library. InputError where it cannot listen there.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(f"cannot listen on {host}, port {port} ({error.strerror}): choose another port") from error
    with listening:
        name = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listening.getsockname()[1]}"
        print(f"Search {len(library)} sources at {address} (Ctrl+C ends it)", flush=True)
        if open_browser:
            webbrowser.open(address)  # whose request waits until it is answered
        app = create_app(encoder, library, folder, host)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False, ws="none")).run([listening])


def create_app(encoder: "CLaMP3Encoder", library: "Library", folder: str | Path, host: str = HOSTS[1]) -> Starlette:
    """The page and its API as an ASGI application; `host` is one more name that it answers to."""
    site = _Site(encoder, library, Path(folder))
    return Starlette(
        routes=[
            Route("/api/library", site.describe),
            Route("/api/search", site.search_text, methods=["GET"]),
            Route("/api/search", site.search_file, methods=["POST"], max_body_size=MAX_UPLOAD),
            Route("/api/similar", site.search_similar),
            Route("/api/notation.svg", site.notation),
            Route("/api/roll.svg", site.roll),
            Route("/api/sound", site.sound),
            Route("/api/file", site.file),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ],
        middleware=[
            Middleware(_Guard),
            Middleware(TrustedHostMiddleware, [*HOSTS, f"[{host}]" if ":" in host else host], www_redirect=False),
        ],
        exception_handlers={InputError: _refuse, HTTPException: _refuse, Exception: _refuse},
        lifespan=site.lifespan,
    )


class _Site:
    """The handlers of the API, around one library."""

    def __init__(self, encoder: "CLaMP3Encoder", library: "Library", folder: Path):
        self.encoder, self.sources, self.failures = encoder, library.sources, library.failures
        self.matrix = library.matrix
        self.modalities = np.array(library.modalities, dtype=object)
        self.root = folder.resolve()
        self.folder = folder.parent if folder.is_file() else folder
        self.addresses = [_address(source, self.folder) for source in self.sources]
        self.numbers = {address: number for number, address in enumerate(self.addresses)}
        self.model_in_use = anyio.CapacityLimiter(1)  # those who wait for it hold no thread
        self.previews: Previews

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory() as folder:
            self.previews = Previews(folder)
            yield
            self.previews.close()

    async def describe(self, request: Request) -> Response:
        return JSONResponse(
            {
                "name": show(self.root.name),
                "total": len(self.sources),
                "modalities": Counter(self.modalities.tolist()),
                "failures": len(self.failures),
                "suffixes": self.encoder.suffixes,
                "max_upload": MAX_UPLOAD,
            }
        )

    async def search_text(self, request: Request) -> Response:
        text = request.query_params.get("q", "").strip()
        if not text:
            raise InputError("expected words to search for in q")
        return await self._answer(
            request, lambda: ({"text": text}, self.encoder.encode(text, "text")), limiter=self.model_in_use
        )

    async def search_file(self, request: Request) -> Response:
        async with request.form(max_files=1, max_fields=0) as form:
            upload = form.get("file")
            if not isinstance(upload, UploadFile) or not upload.filename:
                raise InputError("expected a file in the form's field `file`")
            return await self._answer(request, partial(self._read_upload, upload), limiter=self.model_in_use)

    def _read_upload(self, upload: UploadFile) -> tuple[dict[str, str], np.ndarray]:
        """What it is, and its vector [D]; of a file of many tunes that of the first one."""
        name, suffix = show(upload.filename), Path(upload.filename).suffix.lower()
        if suffix not in self.encoder.suffixes:
            if suffix in IMAGE_SUFFIXES:
                raise InputError(f"{name}: for images, by their captions, start the page with clamp3 serve --images")
            raise InputError(f"{name}: expected a file ending in {' '.join(self.encoder.suffixes)}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "upload" + suffix)
            with path.open("wb") as file:
                shutil.copyfileobj(upload.file, file)
            try:
                if is_image(path):
                    caption = self.encoder.caption(path)
                    return {"file": name, "caption": caption}, self.encoder.encode(caption, "text")
                return {"file": name}, self.encoder.encode(tunes(path)[0])
            except InputError as error:
                raise InputError(str(error).replace(str(path), name)) from error
            except FileNotFoundError as error:  # the weights of what hears, or sees
                raise HTTPException(503, str(error)) from error

    async def search_similar(self, request: Request) -> Response:
        number = self._number(request)
        return await self._answer(request, lambda: ({"item": self._item(number)}, self.matrix[number]), number)

    async def _answer(
        self,
        request: Request,
        ask: Callable[[], tuple[dict[str, Any], np.ndarray]],
        left_out: int = -1,
        limiter: anyio.CapacityLimiter | None = None,
    ) -> Response:
        """The closest to what `ask`, called in a thread, says is asked for: how the page calls it, its vector [D]."""
        modality = request.query_params.get("modality") or None
        if modality not in (None, *MODALITIES):
            raise InputError(f"expected one of the modalities {', '.join(MODALITIES)}, got {modality!r}")
        top_k = request.query_params.get("top_k", str(TOP_K))
        if not _is_number(top_k) or not 1 <= int(top_k) <= MAX_TOP_K:
            raise InputError(f"expected a top_k of 1 to {MAX_TOP_K}, got {top_k[:40]!r}")
        search = partial(self._search, ask, modality, int(top_k), left_out)
        return JSONResponse(await anyio.to_thread.run_sync(search, limiter=limiter))

    def _search(
        self, ask: Callable[[], tuple[dict[str, Any], np.ndarray]], modality: str | None, top_k: int, left_out: int
    ) -> dict[str, Any]:
        query, vector = ask()
        similarities = self.matrix @ vector
        rows = np.arange(len(self.sources))
        rows = rows[(rows != left_out) & (self.modalities == modality if modality else True)]
        best = rows[np.argsort(-similarities[rows], kind="stable")[:top_k]].tolist()
        results = [{**self._item(row), "similarity": round(float(similarities[row]), 4)} for row in best]
        return {"query": query, "total": len(rows), "results": results}

    def _item(self, number: int) -> dict[str, Any]:
        """What the page shows of a source, and where the rest of it is."""
        source, modality, address = self.sources[number], self.modalities[number], self.addresses[number]
        path = Path(source)
        below = Path(os.path.relpath(path, self.folder)).parent.as_posix()
        file, notation, roll, sound = (
            f"/api/{what}?{urlencode({'source': address})}" for what in ("file", "notation.svg", "roll.svg", "sound")
        )
        item = {
            "address": address,
            "title": None,
            "name": show(path.name),
            "folder": "" if below == "." else show(below),
            "tune": source.number if isinstance(source, Tune) else None,
            "modality": modality,
            "file": file,
        }
        if modality == "score":
            item |= {"notation": notation, "sound": sound}
            with suppress(HTTPException):
                item["title"] = title(self._source(number))
        elif modality == "midi":
            item |= {"roll": roll, "sound": sound}
        elif modality == "audio":
            item["sound"] = file if path.suffix.lower() in PLAYABLE else sound
        return item

    async def notation(self, request: Request) -> Response:
        width = NARROW if "narrow" in request.query_params else WIDE
        make = partial(engrave, width=width)
        return await self._preview(request, make, f"{width}.svg", "image/svg+xml", ["score"])

    async def roll(self, request: Request) -> Response:
        return await self._preview(request, draw_roll, "roll.svg", "image/svg+xml", ["midi"])

    async def sound(self, request: Request) -> Response:
        return await self._preview(request, play, "sound.wav", "audio/wav", ["score", "midi", "audio"])

    async def _preview(
        self,
        request: Request,
        make: Callable[["Source", Path], None],
        name: str,
        media_type: str,
        of: list[str],
    ) -> Response:
        number = self._number(request)
        source = self._source(number)
        if self.modalities[number] not in of:
            raise HTTPException(404, f"{show(Path(source).name)}: expected {' or '.join(of)} for that")
        try:
            path = await self.previews.get(make, source, f"{number}.{name}")
        except InputError as error:
            raise InputError(str(error).replace(str(Path(source)), show(Path(source).name))) from error
        return FileResponse(path, media_type=media_type, headers=INERT if name.endswith(".svg") else None)

    async def file(self, request: Request) -> Response:
        number = self._number(request)
        path = Path(self._source(number))
        kind = {**PLAYABLE, **PICTURES, ".txt": "text/plain"}.get(path.suffix.lower())
        return FileResponse(
            path.resolve(),
            media_type=kind or "application/octet-stream",
            filename=show(path.name),
            content_disposition_type="inline" if kind else "attachment",
            headers=None if kind in PLAYABLE.values() else INERT,
        )

    def _number(self, request: Request) -> int:
        address = request.query_params.get("source", "")
        if address not in self.numbers:
            raise HTTPException(404, f"expected a source of this library, got {address[:200]!r}: search for it anew")
        return self.numbers[address]

    def _source(self, number: int) -> "Source":
        """A source whose file is still there, and in the folder wherever links lead."""
        source = self.sources[number]
        path = Path(source)
        try:
            real = path.resolve(strict=True)
        except OSError as error:
            raise HTTPException(404, f"{show(path.name)}: the file is gone") from error
        if not real.is_relative_to(self.root) or not real.is_file():
            raise HTTPException(403, f"{show(path.name)}: a link leads out of the folder that is served")
        return source


class _Guard:
    """Refuses what is too large and what pages of other sites ask for, and adds HEADERS to every answer."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        error = None
        if int(headers.get("content-length", 0)) > MAX_UPLOAD:
            error = HTTPException(413)
        elif scope["path"].startswith("/api/") and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            error = HTTPException(403, "expected a request of the search page, got another site's")
        answer = _refusal(headers, error) if error else self.app
        await answer(scope, receive, send_guarded)


async def _refuse(request: Request, error: Exception) -> Response:
    return _refusal(request.headers, error)


def _refusal(asked: Headers, error: Exception) -> Response:
    """An error as a sentence that the page shows, or as a page of its own where the browser asks for one."""
    status, text = 500, "the server failed: the terminal that it runs in says how"
    if isinstance(error, InputError):
        status, text = 400, str(error)
    elif isinstance(error, HTTPException):
        status, text = error.status_code, error.detail
    if status == 413:
        text = f"expected at most {MAX_UPLOAD // 2**20} MB"
    if "text/html" not in asked.get("accept", ""):
        return JSONResponse({"error": text}, status, HEADERS)
    page = Template((PAGE / "error.html").read_text(encoding="utf-8"))
    return HTMLResponse(page.substitute(reason=html.escape(text)), status, HEADERS)


def _address(source: "Source", folder: Path) -> str:
    """The path below the folder, and the tune if it is one of many: sub/book.abc#2. What is no Unicode is escaped."""
    tune = f"#{source.number}" if isinstance(source, Tune) else ""
    below = Path(os.path.relpath(source, folder)).as_posix()
    return f"{below}{tune}".encode(errors="backslashreplace").decode()


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
