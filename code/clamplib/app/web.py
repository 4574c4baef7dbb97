"""The search page: the sources of a collection, found by a sentence, by a file or by one another, in a browser.

    serve_page(encoder, collection, "music")  # http://127.0.0.1:8642

| request | answer |
| --- | --- |
| GET /api/collection | what there is to search |
| GET /api/search?q=&top_k=&modality= | the sources closest to a text |
| POST /api/search?top_k=&modality= | the sources closest to the file in the form's field `file` |
| GET /api/similar?source=&top_k=&modality= | the sources closest to a source |
| GET /api/notation.svg?source=, /api/roll.svg, /api/sound, /api/file | previews of a source, and its file |

The address of a source is its path below the folder and the number of its tune (sub/book.abc#2), so that links stay
valid when files are added. If the encoder has a captioner, an image is searched by its caption, which the answer
includes.

The server is Starlette and not Gradio. Gradio loads fonts and scripts from other hosts, and would need as much code for
engraved scores, piano rolls and players in every result. The page (page/) is plain HTML, CSS and JavaScript, and works
without a network.

Pages of other sites in the same browser are kept out: foreign host names (also rebound ones), cross-site requests and
frames are refused. Only the collection's own files are served, and only if they lie in the folder. A request's address
is looked up among them and never opened as a path.
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
from clamplib.formats.score_files import Tune, list_tunes, read_title
from clamplib.retrieval.similarity import search

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
    raise ImportError(
        'the search page needs extra packages; in a clone, run: pip install -c constraints.txt -e ".[web]"'
    ) from error

if TYPE_CHECKING:  # these import torch
    from clamplib.embedding.collections import Collection, Source
    from clamplib.embedding.encoder import CLaMP3Encoder

PAGE_FOLDER = Path(__file__).with_name("page")
PORT = 8642
HOSTS = ("localhost", "127.0.0.1", "[::1]")
MAX_UPLOAD = 50 * 2**20  # bytes
TOP_K = 20
MAX_TOP_K = 500
PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
PLAYABLE = {  # formats that browsers play; other recordings are decoded here
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
INERT = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"
}  # for contents of files, which must not run scripts


def serve_page(
    encoder: "CLaMP3Encoder",
    collection: "Collection",
    folder: str | Path,
    host: str = "127.0.0.1",
    port: int = PORT,
    open_browser: bool = False,
) -> None:
    """Serves the search page of a collection until Ctrl+C.

    The server answers to the names of the loopback interface and to `host`. For other machines in the network, pass the
    address that they use, such as 192.168.1.5; 0.0.0.0 is for containers whose port is published on this machine.
    Everyone who can reach the server can search and read the collection.

    Args:
        encoder: embeds the queries.
        collection: what to search.
        folder: the folder of the collection's sources.
        host: the address to listen on.
        port: the port to listen on; 0 for any free port.
        open_browser: whether to open the page in the default browser.

    Raises:
        InputError: the server cannot listen there.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(f"cannot listen on {host}, port {port} ({error.strerror}): choose another port") from error
    with listening:
        name = _url_host("127.0.0.1" if host in ("0.0.0.0", "::") else host)
        address = f"http://{name}:{listening.getsockname()[1]}"
        print(f"Search {len(collection)} sources at {address} (Ctrl+C ends it)", flush=True)
        if open_browser:
            webbrowser.open(address)  # the browser's request waits until the server runs
        app = create_app(encoder, collection, folder, host)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False, ws="none")).run([listening])


def create_app(
    encoder: "CLaMP3Encoder", collection: "Collection", folder: str | Path, host: str = HOSTS[1]
) -> Starlette:
    """Creates the page and its API as an ASGI application. It answers to `host` besides the loopback's names."""
    site = _Site(encoder, collection, Path(folder))
    return Starlette(
        routes=[
            Route("/api/collection", site.describe),
            Route("/api/search", site.search_text, methods=["GET"]),
            Route("/api/search", site.search_file, methods=["POST"], max_body_size=MAX_UPLOAD),
            Route("/api/similar", site.search_similar),
            Route("/api/notation.svg", site.notation),
            Route("/api/roll.svg", site.roll),
            Route("/api/sound", site.sound),
            Route("/api/file", site.file),
            Mount("/", StaticFiles(directory=PAGE_FOLDER, html=True)),
        ],
        middleware=[
            Middleware(_Guard),
            Middleware(TrustedHostMiddleware, [*HOSTS, _url_host(host)], www_redirect=False),
        ],
        exception_handlers={InputError: _refuse, HTTPException: _refuse, Exception: _refuse},
        lifespan=site.lifespan,
    )


class _Site:
    """The handlers of the API, for one collection."""

    def __init__(self, encoder: "CLaMP3Encoder", collection: "Collection", folder: Path):
        self.encoder = encoder
        self.sources = collection.sources
        self.failures = collection.failures
        self.matrix = collection.matrix
        self.modalities = np.array(collection.modalities, dtype=object)
        self.root = folder.resolve()
        self.folder = folder.parent if folder.is_file() else folder
        self.addresses = [_address(source, self.folder) for source in self.sources]
        self.numbers = {address: number for number, address in enumerate(self.addresses)}
        self.model_in_use = anyio.CapacityLimiter(1)  # requests that wait for it hold no thread
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

        def ask() -> tuple[dict[str, Any], np.ndarray]:
            return {"text": text}, self.encoder.encode(text, "text")

        return await self._answer(request, ask, limiter=self.model_in_use)

    async def search_file(self, request: Request) -> Response:
        async with request.form(max_files=1, max_fields=0) as form:
            upload = form.get("file")
            if not isinstance(upload, UploadFile) or not upload.filename:
                raise InputError("expected a file in the form's field `file`")
            return await self._answer(request, partial(self._read_upload, upload), limiter=self.model_in_use)

    def _read_upload(self, upload: UploadFile) -> tuple[dict[str, str], np.ndarray]:
        """Returns how the page names the file, and its vector [D]. Of several tunes the first one is embedded."""
        name, suffix = show(upload.filename), Path(upload.filename).suffix.lower()
        if suffix not in self.encoder.suffixes:
            if suffix in IMAGE_SUFFIXES:
                raise InputError(f"{name}: to search by images, start the page with clamp3 serve --images")
            raise InputError(f"{name}: expected a file ending in {' '.join(self.encoder.suffixes)}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "upload" + suffix)
            with path.open("wb") as file:
                shutil.copyfileobj(upload.file, file)
            try:
                if is_image(path):
                    caption = self.encoder.caption(path)
                    return {"file": name, "caption": caption}, self.encoder.encode(caption, "text")
                return {"file": name}, self.encoder.encode(list_tunes(path)[0])
            except InputError as error:
                raise InputError(str(error).replace(str(path), name)) from error
            except FileNotFoundError as error:  # the weights of the captioner or of MERT
                raise HTTPException(503, str(error)) from error

    async def search_similar(self, request: Request) -> Response:
        number = self._number(request)

        def ask() -> tuple[dict[str, Any], np.ndarray]:
            return {"item": self._item(number)}, self.matrix[number]

        return await self._answer(request, ask, number)

    async def _answer(
        self,
        request: Request,
        ask: Callable[[], tuple[dict[str, Any], np.ndarray]],
        left_out: int = -1,
        limiter: anyio.CapacityLimiter | None = None,
    ) -> Response:
        """Searches for what `ask` returns: how the page names the query, and its vector [D]. Runs in a thread."""
        modality = request.query_params.get("modality") or None
        if modality not in (None, *MODALITIES):
            raise InputError(f"expected one of the modalities {', '.join(MODALITIES)}, got {modality!r}")
        top_k = request.query_params.get("top_k", str(TOP_K))
        if not _is_number(top_k) or not 1 <= int(top_k) <= MAX_TOP_K:
            raise InputError(f"expected a top_k of 1 to {MAX_TOP_K}, got {top_k[:40]!r}")
        find = partial(self._find, ask, modality, int(top_k), left_out)
        return JSONResponse(await anyio.to_thread.run_sync(find, limiter=limiter))

    def _find(
        self, ask: Callable[[], tuple[dict[str, Any], np.ndarray]], modality: str | None, top_k: int, left_out: int
    ) -> dict[str, Any]:
        query, vector = ask()
        searched = np.arange(len(self.sources)) != left_out
        if modality:
            searched &= self.modalities == modality
        rows = np.flatnonzero(searched)
        [best], [similarities] = search(vector[None], self.matrix, top_k, rows)
        results = []
        for row, similarity in zip(best.tolist(), similarities.tolist(), strict=True):
            results.append({**self._item(row), "similarity": round(similarity, 4)})
        return {"query": query, "total": len(rows), "results": results}

    def _item(self, number: int) -> dict[str, Any]:
        """Describes a source for the page, with the addresses of its file and previews."""
        source = self.sources[number]
        modality = self.modalities[number]
        address = self.addresses[number]
        path = Path(source)
        below = Path(os.path.relpath(path, self.folder)).parent.as_posix()
        words = urlencode({"source": address})
        file = f"/api/file?{words}"
        sound = f"/api/sound?{words}"
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
            item |= {"notation": f"/api/notation.svg?{words}", "sound": sound}
            with suppress(HTTPException):
                item["title"] = read_title(self._source(number))
        elif modality == "midi":
            item |= {"roll": f"/api/roll.svg?{words}", "sound": sound}
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
            raise HTTPException(404, f"{show(Path(source).name)}: there is no such preview; expected {' or '.join(of)}")
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
            raise HTTPException(
                404, f"expected a source of this collection, got {address[:200]!r}: search for it again"
            )
        return self.numbers[address]

    def _source(self, number: int) -> "Source":
        """Returns a source, if its file still exists and links do not lead out of the folder."""
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
    """Refuses uploads that are too large and requests from other sites, and adds HEADERS to every answer."""

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
            error = HTTPException(403, "expected a request from the search page, got one from another site")
        answer = _refusal(headers, error) if error else self.app
        await answer(scope, receive, send_guarded)


async def _refuse(request: Request, error: Exception) -> Response:
    return _refusal(request.headers, error)


def _refusal(asked: Headers, error: Exception) -> Response:
    """Answers with an error as JSON for the page to show, or as HTML if the browser asks for a page."""
    status = 500
    text = "the server failed; see the terminal that it runs in"
    if isinstance(error, InputError):
        status = 400
        text = str(error)
    elif isinstance(error, HTTPException):
        status = error.status_code
        text = error.detail
    if status == 413:
        text = f"expected at most {MAX_UPLOAD // 2**20} MB"
    if "text/html" not in asked.get("accept", ""):
        return JSONResponse({"error": text}, status, HEADERS)
    page = Template((PAGE_FOLDER / "error.html").read_text(encoding="utf-8"))
    return HTMLResponse(page.substitute(reason=html.escape(text)), status, HEADERS)


def _address(source: "Source", folder: Path) -> str:
    """Returns the path below the folder, with the tune if it is one of many: sub/book.abc#2.

    Characters that are not Unicode are escaped.
    """
    tune = f"#{source.number}" if isinstance(source, Tune) else ""
    below = Path(os.path.relpath(source, folder)).as_posix()
    return f"{below}{tune}".encode(errors="backslashreplace").decode()


def _url_host(host: str) -> str:
    """Returns a host as it stands in an address: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
