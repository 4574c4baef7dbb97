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

Nobody can stop the page for the others. Uploads, previews and titles are read in other processes, within the encoder's
limits of time and memory; only what was read takes the model, and queries that wait for it are encoded together (see
`queries`). Slow and idle clients are cut off (see `guard`).

Pages of other sites in the same browser are kept out: foreign host names (also rebound ones), cross-site requests and
frames are refused. Only the collection's own files are served, and only if they lie in the folder. A request's address
is looked up among them and never opened as a path.
"""

import asyncio
import logging
import os
import shutil
import socket
import tempfile
import webbrowser
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlencode

import anyio
import numpy as np
from loky import cpu_count

from clamplib.app.previews import NARROW, WIDE, Previews, Titles, draw_roll, engrave, play, run_one, value_of
from clamplib.app.queries import Queries
from clamplib.app.slots import AT_ONCE, Slots
from clamplib.embedding.reading import IMAGE_SUFFIXES, MODALITIES, Reading, is_image
from clamplib.files import InputError, show
from clamplib.formats.score_files import Tune, list_tunes
from clamplib.retrieval.similarity import search

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    from clamplib.app import guard
except ImportError as error:
    raise ImportError(
        'the search page needs extra packages; in a clone, run: pip install -c constraints.txt -e ".[web]"'
    ) from error

if TYPE_CHECKING:  # these import torch
    from clamplib.embedding.collections import Collection, Source
    from clamplib.embedding.encoder import CLaMP3Encoder

logger = logging.getLogger(__name__)

T = TypeVar("T")
PAGE_FOLDER = Path(__file__).with_name("page")
PORT = 8642
HOSTS = ("localhost", "127.0.0.1", "[::1]")
MOST_UPLOADS = 16  # at once
MOST_CONNECTIONS = 512
MOST_HEAD = 32 * 2**10  # bytes of a request's first line and headers
ENDING_SECONDS = 2  # in which the requests under way are answered when the server is stopped
CLIENT_LEFT = 499  # as nginx numbers it
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
            create_server(app).run([listening])


def create_app(
    encoder: "CLaMP3Encoder", collection: "Collection", folder: str | Path, host: str = HOSTS[1]
) -> Starlette:
    """Creates the page and its API as an ASGI application. It answers to `host` besides the loopback's names."""
    site = _Site(encoder, collection, Path(folder))
    app = Starlette(
        routes=[
            Route("/api/collection", site.describe),
            Route("/api/search", site.search_text, methods=["GET"]),
            Route("/api/search", site.search_file, methods=["POST"], max_body_size=guard.MAX_UPLOAD),
            Route("/api/similar", site.search_similar),
            Route("/api/notation.svg", site.notation),
            Route("/api/roll.svg", site.roll),
            Route("/api/sound", site.sound),
            Route("/api/file", site.file),
            Mount("/", StaticFiles(directory=PAGE_FOLDER, html=True)),
        ],
        middleware=[
            Middleware(guard.Guard),
            Middleware(TrustedHostMiddleware, [*HOSTS, _url_host(host)], www_redirect=False),
        ],
        exception_handlers={
            InputError: _refuse,
            HTTPException: _refuse,
            ClientDisconnect: _answer_nobody,
            Exception: _refuse,
        },
        lifespan=site.lifespan,
    )
    app.state.site = site
    return app


def create_server(app: Starlette) -> uvicorn.Server:
    """Creates the server of an application that `create_app` has created."""
    config = uvicorn.Config(
        app,
        http=guard.Protocol,
        ws="none",
        log_level="warning",
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        h11_max_incomplete_event_size=MOST_HEAD,
        timeout_graceful_shutdown=ENDING_SECONDS,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.site.end()  # first: requests that wait for a process are answered at once
        await super().shutdown(sockets)


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
        self.uploads = 0  # under way

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.queries = Queries(self.encoder)
        self.titles = Titles()
        self.reading = Slots(AT_ONCE)  # of uploads
        self.reading_by_model = Slots(1)  # of uploads that MERT or BLIP reads
        self.searching = anyio.CapacityLimiter(cpu_count())
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            self.previews = Previews(Path(folder, "previews"), self.encoder.limits)
            self.uploaded = Path(folder, "uploads")  # each in a folder of its own, while it is read
            self.previews.folder.mkdir()
            self.uploaded.mkdir()
            yield
            self.end()

    def end(self) -> None:
        """Ends all reading in other processes."""
        for ending in (self.reading, self.reading_by_model, self.titles, self.previews):
            ending.end()

    async def describe(self, request: Request) -> Response:
        return JSONResponse(
            {
                "name": show(self.root.name),
                "total": len(self.sources),
                "modalities": Counter(self.modalities.tolist()),
                "failures": len(self.failures),
                "suffixes": self.encoder.suffixes,
                "max_upload": guard.MAX_UPLOAD,
            }
        )

    async def search_text(self, request: Request) -> Response:
        text = request.query_params.get("q", "").strip()
        if not text:
            raise InputError("expected words to search for in q")
        return await _unless_left(request, self._search_text(request, text))

    async def _search_text(self, request: Request, text: str) -> Response:
        wanted = _wanted(request)
        vector = await self.queries.encode(Reading("text", text))
        return await self._answer({"text": text}, vector, wanted)

    async def search_file(self, request: Request) -> Response:
        if self.uploads >= MOST_UPLOADS:
            raise HTTPException(503, f"{MOST_UPLOADS} files are being searched for already: try again later")
        self.uploads += 1
        try:
            async with request.form(max_files=1, max_fields=0) as form:
                upload = form.get("file")
                if not isinstance(upload, UploadFile) or not upload.filename:
                    raise InputError("expected a file in the form's field `file`")
                return await _unless_left(request, self._search_file(request, upload))
        finally:
            self.uploads -= 1

    async def _search_file(self, request: Request, upload: UploadFile) -> Response:
        wanted = _wanted(request)
        file, name = Path(upload.filename), show(upload.filename)
        suffix = file.suffix.lower()
        if suffix not in self.encoder.suffixes:
            if suffix in IMAGE_SUFFIXES:
                raise InputError(f"{name}: to search by images, start the page with clamp3 serve --images")
            raise InputError(f"{name}: expected a file ending in {' '.join(self.encoder.suffixes)}")
        by_model = self.encoder.reads_by_model(file)
        slots = self.reading_by_model if by_model else self.reading
        try:
            reading = await slots.run(partial(self._read_upload, upload, suffix, by_model))
            vector = await self.queries.encode(reading)
        except FileNotFoundError as error:  # the weights of the captioner or of MERT
            logger.error("%s cannot be read: %s", name, error)
            raise HTTPException(503, "weights are missing; see the terminal that the server runs in") from error
        query = {"file": name}
        if is_image(file):
            query["caption"] = reading.sequence
        return await self._answer(query, vector, wanted)

    def _read_upload(self, upload: UploadFile, suffix: str, by_model: bool) -> Reading:
        """Reads what was uploaded in another process; of several tunes the first one. Runs in a thread."""
        with tempfile.TemporaryDirectory(dir=self.uploaded, ignore_cleanup_errors=True) as folder:
            path = Path(folder, "upload" + suffix)
            with path.open("wb") as file:
                shutil.copyfileobj(upload.file, file)
            try:
                if by_model:
                    return value_of(list(self.encoder.read_each([path], workers=1)))
                source = run_one(list_tunes, path, self.encoder.limits)[0]
                # With several workers every file is read in another process, not only those that are converted.
                return value_of(list(self.encoder.read_each([source], workers=2)))
            except InputError as error:
                raise InputError(str(error).replace(str(path), show(upload.filename))) from error

    async def search_similar(self, request: Request) -> Response:
        number = self._number(request)
        [item] = await self._describe([number])
        return await self._answer({"item": item}, self.matrix[number], _wanted(request), left_out=number)

    async def _answer(
        self, query: dict[str, Any], vector: np.ndarray, wanted: "_Wanted", left_out: int = -1
    ) -> Response:
        """Searches for a vector [D]. `query` is how the page names it."""
        find = partial(self._find, vector, wanted, left_out)
        total, rows, similarities = await anyio.to_thread.run_sync(find, limiter=self.searching)
        results = await self._describe(rows)
        for item, similarity in zip(results, similarities, strict=True):
            item["similarity"] = round(similarity, 4)
        return JSONResponse({"query": query, "total": total, "results": results})

    def _find(self, vector: np.ndarray, wanted: "_Wanted", left_out: int) -> tuple[int, list[int], list[float]]:
        """Returns how many sources were searched, the closest ones, and their similarities."""
        searched = np.arange(len(self.sources)) != left_out
        if wanted.modality:
            searched &= self.modalities == wanted.modality
        rows = np.flatnonzero(searched)
        [best], [similarities] = search(vector[None], self.matrix, wanted.top_k, rows)
        return len(rows), best.tolist(), similarities.tolist()

    async def _describe(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Describes sources for the page. Their titles are read first, those that can be read quickly."""
        missing = await anyio.to_thread.run_sync(self._untitled, numbers, limiter=self.searching)
        if missing:
            await self.titles.read(missing)
        return await anyio.to_thread.run_sync(lambda: list(map(self._item, numbers)), limiter=self.searching)

    def _untitled(self, numbers: Sequence[int]) -> list["Source"]:
        """Returns the scores whose titles have not been read."""
        missing = []
        for number in numbers:
            if self.modalities[number] == "score":
                with suppress(HTTPException):
                    source = self._source(number)
                    if not self.titles.knows(source):
                        missing.append(source)
        return missing

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
            item["title"] = self.titles.get(source)
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
            path = await _unless_left(request, self.previews.get(make, source, f"{number}.{name}"))
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


async def _refuse(request: Request, error: Exception) -> Response:
    return guard.refusal(request.headers, error)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    """Answers a client that has left. This is not an error."""
    return Response(status_code=CLIENT_LEFT)


async def _unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Waits for work, but only while the client does. The body of the request must have been read."""

    async def wait_for_end() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(wait_for_end())
    leaving.add_done_callback(lambda task: task.cancelled() or task.exception())  # or asyncio logs it
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            leaving.result()  # raises what the upload was refused for
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


class _Wanted(NamedTuple):
    """Which sources a search may find, and how many."""

    modality: str | None
    top_k: int


def _wanted(request: Request) -> _Wanted:
    modality = request.query_params.get("modality") or None
    if modality not in (None, *MODALITIES):
        raise InputError(f"expected one of the modalities {', '.join(MODALITIES)}, got {modality!r}")
    top_k = request.query_params.get("top_k", str(TOP_K))
    if not _is_number(top_k) or not 1 <= int(top_k) <= MAX_TOP_K:
        raise InputError(f"expected a top_k of 1 to {MAX_TOP_K}, got {top_k[:40]!r}")
    return _Wanted(modality, int(top_k))


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
