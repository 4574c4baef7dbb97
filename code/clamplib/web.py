"""The search page: a library's sources found by a sentence, by a file, or by one another, in a browser.

    serve(encoder, library, "music")  # http://127.0.0.1:8642

| path | what |
| --- | --- |
| GET /api/library | what there is to search |
| GET /api/search?q=&top_k=&modality= | the closest to a text |
| POST /api/search?top_k=&modality= | the closest to the file in the form's field `file` |
| GET /api/similar/{number}?top_k=&modality= | the closest to a source |
| GET /api/items/{number}/notation.svg, /roll.svg, /sound, /file | how a source looks and sounds |

Starlette, and not Gradio: that loads fonts and scripts from other hosts, and engraved scores, rolls and players in each
result would take as much code in it. The page (page/) is plain HTML, CSS and JavaScript, and works without a network.

What a stranger's page in the same browser could reach is closed: other host names (rebound ones too), requests from
other sites, frames. Of the disk only the library's own files are served, by their numbers, if they lie in the folder.
"""

import shutil
import socket
import tempfile
import webbrowser
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np

from clamplib.files import InputError, show
from clamplib.inputs import MODALITIES, SUFFIXES
from clamplib.previews import NARROW, WIDE, Previews, draw_roll, engrave, play
from clamplib.scores import Tune, title, tunes

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.datastructures import Headers, MutableHeaders, UploadFile
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise ImportError('the search page needs packages of its own: pip install "clamplib[web]"') from error

if TYPE_CHECKING:  # they bring torch with them
    from clamplib.encoder import CLaMP3Encoder
    from clamplib.library import Library, Source

PAGE = Path(__file__).with_name("page")
PORT = 8642
HOSTS = ("localhost", "127.0.0.1", "[::1]")
MAX_UPLOAD = 50 * 2**20  # bytes
TOP_K, MAX_TOP_K = 20, 500
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
    items = "/api/items/{number}"
    return Starlette(
        routes=[
            Route("/api/library", site.describe),
            Route("/api/search", site.search_text, methods=["GET"]),
            Route("/api/search", site.search_file, methods=["POST"], max_body_size=MAX_UPLOAD),
            Route("/api/similar/{number}", site.search_similar),
            Route(f"{items}/notation.svg", site.notation),
            Route(f"{items}/roll.svg", site.roll),
            Route(f"{items}/sound", site.sound),
            Route(f"{items}/file", site.file),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ],
        middleware=[
            Middleware(_Guard),
            Middleware(TrustedHostMiddleware, [*HOSTS, f"[{host}]" if ":" in host else host], www_redirect=False),
        ],
        exception_handlers={InputError: _refuse, HTTPException: _refuse},
        lifespan=site.lifespan,
    )


class _Site:
    """The handlers of the API, around one library."""

    def __init__(self, encoder: "CLaMP3Encoder", library: "Library", folder: Path):
        self.encoder, self.sources, self.failures = encoder, library.sources, library.failures
        self.matrix = library.matrix
        self.modalities = np.array(library.modalities, dtype=object)
        self.folder, self.root = folder, folder.resolve()
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
                "suffixes": SUFFIXES,
                "max_upload": MAX_UPLOAD,
            }
        )

    async def search_text(self, request: Request) -> Response:
        text = request.query_params.get("q", "").strip()
        if not text:
            raise InputError("expected words to search for in q")
        encode = partial(self.encoder.encode, text, "text")
        return await self._answer(request, {"text": text}, encode)

    async def search_file(self, request: Request) -> Response:
        async with request.form(max_files=1, max_fields=0) as form:
            upload = form.get("file")
            if not isinstance(upload, UploadFile) or not upload.filename:
                raise InputError("expected a file in the form's field `file`")
            return await self._answer(request, {"file": show(upload.filename)}, partial(self._encode_upload, upload))

    def _encode_upload(self, upload: UploadFile) -> np.ndarray:
        """Its vector [1, D]; of a file of many tunes that of the first one."""
        name, suffix = show(upload.filename), Path(upload.filename).suffix.lower()
        if suffix not in SUFFIXES:
            raise InputError(f"{name}: expected a file ending in {' '.join(SUFFIXES)}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "upload" + suffix)
            with path.open("wb") as file:
                shutil.copyfileobj(upload.file, file)
            try:
                return self.encoder.encode(tunes(path)[0])
            except InputError as error:
                raise InputError(str(error).replace(str(path), name)) from error

    async def search_similar(self, request: Request) -> Response:
        number = self._number(request)
        query = {"item": self._item(number)}
        return await self._answer(request, query, lambda: self.matrix[number : number + 1], left_out=number)

    async def _answer(
        self, request: Request, query: dict, encode: Callable[[], np.ndarray], left_out: int = -1
    ) -> Response:
        modality = request.query_params.get("modality") or None
        if modality not in (None, *MODALITIES):
            raise InputError(f"expected one of the modalities {', '.join(MODALITIES)}, got {modality!r}")
        top_k = request.query_params.get("top_k", str(TOP_K))
        if not _is_number(top_k) or not 1 <= int(top_k) <= MAX_TOP_K:
            raise InputError(f"expected a top_k of 1 to {MAX_TOP_K}, got {top_k[:40]!r}")
        search = partial(self._search, encode, modality, int(top_k), left_out)
        found = await anyio.to_thread.run_sync(search, limiter=self.model_in_use)
        return JSONResponse({"query": query, **found})

    def _search(
        self, encode: Callable[[], np.ndarray], modality: str | None, top_k: int, left_out: int
    ) -> dict[str, Any]:
        similarities = self.matrix @ encode()[0]
        rows = np.arange(len(self.sources))
        rows = rows[(rows != left_out) & (self.modalities == modality if modality else True)]
        best = rows[np.argsort(-similarities[rows], kind="stable")[:top_k]].tolist()
        results = [{**self._item(row), "similarity": round(float(similarities[row]), 4)} for row in best]
        return {"total": len(rows), "results": results}

    def _item(self, number: int) -> dict[str, Any]:
        """What the page shows of a source, and where the rest of it is."""
        source, modality = self.sources[number], self.modalities[number]
        path = Path(source)
        below = path.relative_to(self.folder) if path.is_relative_to(self.folder) else Path(path.name)
        here = f"/api/items/{number}"
        item = {
            "number": number,
            "title": None,
            "name": show(path.name),
            "folder": show(below.parent.as_posix()) if below.parent.name else "",
            "tune": source.number if isinstance(source, Tune) else None,
            "modality": modality,
            "file": f"{here}/file",
        }
        if modality == "score":
            item |= {"notation": f"{here}/notation.svg", "sound": f"{here}/sound"}
            with suppress(HTTPException):
                item["title"] = title(self._source(number))
        elif modality == "midi":
            item |= {"roll": f"{here}/roll.svg", "sound": f"{here}/sound"}
        elif modality == "audio":
            item["sound"] = f"{here}/file" if path.suffix.lower() in PLAYABLE else f"{here}/sound"
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
        kind = {**PLAYABLE, ".txt": "text/plain"}.get(path.suffix.lower())
        return FileResponse(
            path.resolve(),
            media_type=kind or "application/octet-stream",
            filename=show(path.name),
            content_disposition_type="inline" if kind else "attachment",
            headers=None if kind in PLAYABLE.values() else INERT,
        )

    def _number(self, request: Request) -> int:
        number = request.path_params["number"]
        if not _is_number(number) or int(number) >= len(self.sources):
            raise HTTPException(404, f"expected a number below {len(self.sources)}, got {number[:40]!r}")
        return int(number)

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
        answer = _refusal(error) if error else self.app
        await answer(scope, receive, send_guarded)


async def _refuse(request: Request, error: Exception) -> Response:
    return _refusal(error)


def _refusal(error: Exception) -> Response:
    """An error as a sentence that the page shows."""
    if not isinstance(error, HTTPException):
        return JSONResponse({"error": str(error)}, 400)
    text = f"expected at most {MAX_UPLOAD // 2**20} MB" if error.status_code == 413 else error.detail
    return JSONResponse({"error": text}, error.status_code)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
