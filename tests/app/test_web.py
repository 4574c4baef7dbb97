"""The search page and its server: what it finds and serves, what it refuses, and how it stands hostile clients."""

import io
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import pytest
from sound import midi_file, sine, write

pytest.importorskip("starlette", reason="starlette or uvicorn is not installed: extra web")
pytest.importorskip("uvicorn", reason="starlette or uvicorn is not installed: extra web")
import soundfile
import uvicorn
from PIL import Image
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from clamplib.app import guard, web
from clamplib.app.slots import Slots
from clamplib.embedding.captions import open_image
from clamplib.embedding.collections import Collection, embed_sources, find_sources
from clamplib.embedding.encoder import CLaMP3Encoder
from clamplib.files import InputError
from clamplib.formats.notation import abc_to_xml
from clamplib.jobs import Limits, Outcome
from clamplib.models.encoders import CLaMP3Model
from clamplib.models.variants import load_clamp3

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HERE = "http://127.0.0.1:8642"
TITLE = "<script>document.title = 'broken out'</script>&amp;"
REEL = "X:1\nT:{}\nM:4/4\nL:1/8\nK:D\n" + "dfaf gfed|cdef gfed|dfaf gfed|cABc d4|\n" * 2
OUTSIDE = "outside.mid"
CAPTION = "a man playing a piano"


@pytest.fixture(scope="module")
def encoder():
    return CLaMP3Encoder.from_pretrained("mini", device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of sources of each kind, with a link that leads out of it."""
    parent = tmp_path_factory.mktemp("web")
    folder = parent / "music"
    (folder / "sub").mkdir(parents=True)
    (folder / "reel.abc").write_text(REEL.format(TITLE))
    (folder / "book.abc").write_text(REEL.format("First") + "\n" + REEL.format("Second").replace("K:D", "K:G"))
    (folder / "sub/air.musicxml").write_text(abc_to_xml(REEL.format("An Air")))
    (folder / "air.txt").write_text("A slow air, <b>tender</b> and sad. 悲しい歌\n", encoding="utf-8")
    midi_file(folder / "scale.mid", [(60 + step, 240) for step in range(12)])
    write(folder / "tone.wav", sine(2, 22_050, 440.0), 22_050, "pcm_s16le")
    midi_file(parent / OUTSIDE, [(72 - step, 240) for step in range(12)])
    (folder / "link.mid").symlink_to(parent / OUTSIDE)
    return folder


@pytest.fixture(scope="module")
def collection(encoder, folder):
    collection = embed_sources(encoder, find_sources(folder), workers=1, progress=False)
    assert not collection.failures and len(collection) == 8
    return collection


@pytest.fixture(scope="module")
def client(encoder, collection, folder):
    with TestClient(web.create_app(encoder, collection, folder), base_url=HERE) as client:
        yield client


@pytest.fixture(scope="module")
def addresses(collection, folder):
    """The address of each source of the collection."""
    return [str(source).removeprefix(f"{folder}/") for source in collection.sources]


@pytest.fixture(scope="module")
def captioning(folder):
    """An encoder that gives every image the same caption."""
    encoder = CLaMP3Encoder.from_pretrained("mini", device="cpu", captioner="a folder")
    encoder._captioner = lambda images: [CAPTION for image in images if open_image(image)]
    return encoder


def image_file(path):
    Image.new("RGB", (60, 40), "teal").save(path)
    return path


def at(what, address, **more):
    return f"/api/{what}?{urlencode({'source': address, **more})}"


def found(response):
    assert response.status_code == 200, response.text
    return [(item["address"], item["similarity"]) for item in response.json()["results"]]


def refusal(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()["error"]


def check_closest(results, vector, collection, addresses, left_out=()):
    """Checks that the results are all sources but those left out, in the order of their cosine with the vector."""
    similarities = dict(zip(addresses, collection.matrix @ (vector / np.linalg.norm(vector)), strict=True))
    expected = sorted(similarities.keys() - set(left_out), key=lambda a: (-similarities[a], addresses.index(a)))
    assert [address for address, _ in results] == expected
    values = [similarities[address] for address in expected]
    np.testing.assert_allclose([value for _, value in results], values, atol=1e-4)


def test_a_text_finds_the_closest(client, encoder, collection, addresses):
    vector = encoder.encode("a lively reel")
    check_closest(found(client.get("/api/search?q=a+lively+reel")), vector, collection, addresses)
    assert (
        found(client.get("/api/search?q=a+lively+reel&top_k=2")) == found(client.get("/api/search?q=a lively reel"))[:2]
    )
    answer = client.get("/api/search?q=+a+lively+reel+&modality=score&top_k=2").json()
    assert answer["query"] == {"text": "a lively reel"} and answer["total"] == 4
    assert {item["modality"] for item in answer["results"]} == {"score"} and len(answer["results"]) == 2


@pytest.mark.parametrize("address", ["scale.mid", "book.abc#2", "sub/air.musicxml"])
def test_similar_sources_leave_out_the_source_itself(client, collection, addresses, address):
    answer = client.get(at("similar", address))
    check_closest(found(answer), collection.features.raw[addresses.index(address)], collection, addresses, [address])
    assert answer.json()["query"]["item"]["address"] == address and answer.json()["total"] == 7


def test_links_hold_when_other_files_come_and_go(encoder, tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b & c.txt", "sub/d#2.txt", "sub/100%.txt"):
        (tmp_path / name).write_text(f"the words of {name}")
    book = REEL.format("First") + "\n" + REEL.format("Second")
    (tmp_path / "e.abc").write_text(book)
    before, after = {}, {}
    for files in (before, after):
        collection = embed_sources(encoder, find_sources(tmp_path), workers=1, progress=False)
        with TestClient(web.create_app(encoder, collection, tmp_path), base_url=HERE) as client:
            items = client.get("/api/search?q=a").json()["results"]
            files |= {item["address"]: item["file"] for item in items}
            assert client.get(files["b & c.txt"]).text == "the words of b & c.txt"
            assert client.get(files["sub/100%.txt"]).text == "the words of sub/100%.txt"
            if files is before:
                (tmp_path / "a.txt").write_text("another")
                (tmp_path / "sub/d#2.txt").unlink()
            else:
                assert "search for it again" in refusal(client.get(before["sub/d#2.txt"]), 404)
    assert set(before) - set(after) == {"sub/d#2.txt"} and set(after) - set(before) == {"a.txt"}
    assert {address: after.get(address) for address in before if address in after}.items() <= before.items()


def test_the_folder_may_be_a_file(encoder, folder):
    path = folder / "book.abc"
    collection = embed_sources(encoder, find_sources(path), workers=1, progress=False)
    with TestClient(web.create_app(encoder, collection, path), base_url=HERE) as client:
        assert {address for address, _ in found(client.get("/api/search?q=a"))} == {"book.abc#1", "book.abc#2"}
        assert client.get(at("file", "book.abc#2")).content == path.read_bytes()


@pytest.mark.parametrize("name", ["reel.abc", "scale.mid", "tone.wav", "air.txt"])
def test_an_uploaded_file_finds_itself_and_is_not_kept(client, folder, name, tmp_path, monkeypatch):
    before = sorted(folder.rglob("*"))
    uploads = client.app.state.site.uploaded
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    answer = client.post("/api/search?top_k=1", files={"file": (name.upper(), (folder / name).read_bytes())})
    ((address, similarity),) = found(answer)
    twins = {"reel.abc": {"reel.abc", "book.abc", "air.musicxml"}}  # which hold the same notes
    close = Path(address.split("#")[0]).name
    assert close in twins.get(name, {name}) and similarity == pytest.approx(1, abs=1e-3)
    assert answer.json()["query"] == {"file": name.upper()}
    assert not list(tmp_path.iterdir()) and not list(uploads.iterdir()) and sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("tune.abc", b"no music", "tune.abc: "),
        ("tune.mid", b"RIFF", "tune.mid: expected a MIDI file (it begins with MThd), got b'RIFF'"),
        ("tune.musicxml", b"<html/>", "got <html>"),
        ("tune.mp3", b"nothing to hear", "tune.mp3: expected a recording"),
        ("features.npy", b"\x93NUMPY", "features.npy: expected a file ending in .txt"),
        ("<b>.exe", b"MZ", "<b>.exe: expected a file ending in .txt"),
        ("../../tune.mid", b"", "tune.mid: expected a MIDI file"),
        ("a.png", b"\x89PNG", "a.png: to search by images, start the page with clamp3 serve --images"),
    ],
)
def test_an_upload_that_cannot_be_read_is_refused(client, name, content, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    uploads = client.app.state.site.uploaded
    error = refusal(client.post("/api/search", files={"file": (name, content)}), 400)
    assert expected in error and str(tmp_path) not in error and str(uploads) not in error and "/tmp" not in error
    assert not list(tmp_path.iterdir()) and not list(uploads.iterdir())


def test_an_image_finds_what_its_caption_finds(captioning, collection, folder, tmp_path, monkeypatch):
    content = image_file(tmp_path / "a.png").read_bytes()
    with TestClient(web.create_app(captioning, collection, folder), base_url=HERE) as client:
        assert {".png", ".abc"} < set(client.get("/api/collection").json()["suffixes"])
        answer = client.post("/api/search?top_k=3", files={"file": ("photo.PNG", content)})
        assert answer.json()["query"] == {"file": "photo.PNG", "caption": CAPTION}
        assert found(answer) == found(client.get("/api/search", params={"q": CAPTION, "top_k": 3}))
        error = refusal(client.post("/api/search", files={"file": ("photo.png", content[:20])}), 400)
        assert error.startswith("photo.png: expected an image, PNG, JPEG or WebP")

        def fetch(items, **options):
            raise FileNotFoundError("/home/me/blip is not a folder and could not be fetched")

        monkeypatch.setattr(captioning, "read_each", fetch)
        error = refusal(client.post("/api/search", files={"file": ("photo.png", content)}), 503)
        assert error == "weights are missing; see the terminal that the server runs in"


def test_images_of_the_collection_are_found_and_shown(captioning, tmp_path):
    content = image_file(tmp_path / "a.webp").read_bytes()
    (tmp_path / "a.txt").write_text("a jig")
    collection = embed_sources(captioning, find_sources(tmp_path, captioning.suffixes), workers=1, progress=False)
    with TestClient(web.create_app(captioning, collection, tmp_path), base_url=HERE) as client:
        assert client.get("/api/collection").json()["modalities"] == {"image": 1, "text": 1}
        (item,) = client.get("/api/search", params={"q": CAPTION, "modality": "image"}).json()["results"]
        assert item["similarity"] == pytest.approx(1, abs=1e-3)
        image = client.get(item["file"])
        assert image.content == content and image.headers["content-type"] == "image/webp"
        assert "sandbox" in image.headers["content-security-policy"]


def test_a_recording_that_mert_reads_finds_itself(tiny_variant, mert_weights, folder):
    tiny = load_clamp3(tiny_variant, weights_folder=tiny_variant)
    geometry = replace(tiny.geometry, audio_hidden_size=64)
    loaded = replace(tiny, model=CLaMP3Model.from_geometry(geometry).eval(), geometry=geometry)
    encoder = CLaMP3Encoder(loaded, device="cpu", mert=mert_weights)
    path = folder / "tone.wav"
    collection = embed_sources(encoder, [path], workers=1, progress=False)
    with TestClient(web.create_app(encoder, collection, folder), base_url=HERE) as client:
        [(_, similarity)] = found(client.post("/api/search", files={"file": (path.name, path.read_bytes())}))
        assert similarity == pytest.approx(1, abs=1e-3)
        error = refusal(client.post("/api/search", files={"file": ("a.wav", b"nothing to hear")}), 400)
        assert error.startswith("a.wav: expected a recording") and "/tmp" not in error


def test_an_upload_needs_its_field(client):
    for body in ({"data": {"file": "words"}}, {"files": {"other": ("a.txt", b"a")}}, {"content": b"bare"}, {}):
        assert refusal(client.post("/api/search", **body), 400)


@pytest.mark.parametrize("stated", [True, False])
def test_an_upload_is_limited_in_size(encoder, collection, folder, stated, monkeypatch):
    monkeypatch.setattr(guard, "MAX_UPLOAD", 2**20)
    with TestClient(web.create_app(encoder, collection, folder), base_url=HERE) as client:
        small, large = ({"file": ("a.txt", b"jig" * size)} for size in (10, 2**20))
        body = client.build_request("POST", "/api/search", files=large)
        content = (
            body.read() if stated else iter([body.read()[start : start + 2**16] for start in range(0, 2**22, 2**16)])
        )
        headers = {"content-type": body.headers["content-type"]}
        assert refusal(client.post("/api/search", content=content, headers=headers), 413) == "expected at most 1 MB"
        assert found(client.post("/api/search", files=small))


@pytest.mark.parametrize(
    "query",
    ["", "?q=", "?q=+", "?q=a&modality=smell", "?q=a&top_k=0", "?q=a&top_k=-1", "?q=a&top_k=501", "?q=a&top_k=x"],
)
def test_bad_parameters_are_refused(client, query):
    assert refusal(client.get(f"/api/search{query}"), 400).startswith("expected ")


@pytest.mark.parametrize(
    "address",
    ["", "0", "../outside.mid", "/etc/passwd", "./reel.abc", "sub/../reel.abc", "reel.abc\0", "book.abc", "book.abc#3"],
)
def test_only_sources_are_served(client, folder, address):
    for what in ("similar", "file", "sound", "notation.svg", "roll.svg"):
        for asked in (address, str(folder / address)):
            error = refusal(client.get(at(what, asked)), 404)
            assert error.startswith("expected a source of this collection, got ")
    for path in ("file", "file?source=%ff", f"file?source={'9' * 5000}", "file/reel.abc", "items/0/file"):
        assert len(refusal(client.get(f"/api/{path}"), 404)) < 400


@pytest.mark.parametrize(
    "path", ["/../web.py", "/..%2fweb.py", "/%2e%2e/web.py", "//etc/passwd", "/etc/passwd", "/%00"]
)
def test_no_files_but_the_page_are_served(client, path):
    refusal(client.get(path), 404)


def test_a_link_that_leads_out_is_found_but_not_served(client):
    assert client.get(at("similar", "link.mid")).status_code == 200
    for what in ("file", "roll.svg", "sound"):
        assert "leads out of the folder" in refusal(client.get(at(what, "link.mid")), 403)


def test_a_file_that_is_gone_is_named(encoder, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("a jig")
    collection = embed_sources(encoder, find_sources(tmp_path), workers=1, progress=False)
    (tmp_path / "a.txt").unlink()
    with TestClient(web.create_app(encoder, collection, tmp_path), base_url=HERE) as client:
        assert refusal(client.get(at("file", "a.txt")), 404) == "a.txt: the file is gone"
        assert client.get(at("file", "b.txt")).text == "a jig"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8642", "", "[::2]:1"]
)
def test_other_hosts_are_refused(client, host):
    assert client.get("/api/collection", headers={"host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8642", "LOCALHOST:8642", "music.local"])
def test_own_hosts_are_served(encoder, collection, folder, host):
    with TestClient(web.create_app(encoder, collection, folder, "music.local"), base_url=HERE) as client:
        assert client.get("/api/collection", headers={"host": host}).status_code == 200


def test_other_sites_are_refused(client):
    for site in ("cross-site", "same-site"):
        assert refusal(client.get("/api/search?q=a", headers={"sec-fetch-site": site}), 403)
        assert client.get("/?q=a", headers={"sec-fetch-site": site}).status_code == 200  # a link that was shared
    assert client.get("/api/collection", headers={"sec-fetch-site": "same-origin"}).status_code == 200
    assert client.get("/api/collection").headers["cross-origin-resource-policy"] == "same-origin"


def test_the_page_needs_no_other_host_and_no_inline_code(client):
    policy = client.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; ") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    for name in ("", "page.js", "page.css", "icon.svg", "error.html"):
        response = client.get(f"/{name}")
        assert response.status_code == 200 and response.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"""(?<!xmlns=")https?://|url\(|\sstyle=|\son\w+=|innerHTML|<script>""", response.text)


def test_a_browser_gets_errors_as_a_page(client, encoder, collection, folder, monkeypatch):
    browser = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for path, headers, status in (
        (at("file", "<b>gone"), {}, 404),
        ("/none", {}, 404),
        ("/api/search?q=a", {"sec-fetch-site": "cross-site"}, 403),
    ):
        answer = client.get(path, headers=browser | headers)
        assert answer.status_code == status and "<h1>" in answer.text and "<b>" not in answer.text
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["content-security-policy"] == guard.HEADERS["content-security-policy"]
    monkeypatch.setattr(encoder, "encode_readings", None)
    app = web.create_app(encoder, collection, folder)
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as broken:
        assert "the terminal" in refusal(broken.get("/api/search?q=a"), 500)
        assert "the terminal" in broken.get("/api/search?q=a", headers=browser).text


def test_one_search_at_a_time_uses_the_model_and_others_do_not_wait(encoder, collection, folder, monkeypatch):
    at_work, most, entered, release = [], [], threading.Event(), threading.Event()

    def encode(readings):
        at_work.append(readings)
        most.append(len(at_work))
        entered.set()
        assert release.wait(60)
        at_work.remove(readings)
        return [Outcome(number, collection.matrix[:1]) for number, _, _ in readings]

    monkeypatch.setattr(encoder, "encode_readings", encode)
    answers = []
    with running(web.create_app(encoder, collection, folder)) as address:
        asking = [
            threading.Thread(target=lambda q=q: answers.append(urlopen(f"{address}/api/search?q={q}").read()))
            for q in range(5)
        ]
        for thread in asking:
            thread.start()
        assert entered.wait(60)
        assert urlopen(address + at("similar", "scale.mid")).status == 200 and not answers
        release.set()
        for thread in asking:
            thread.join()
    assert len(answers) == 5 and set(most) == {1}


# ------------------------------------------------------------------------------------ nobody stops the page for others


def hang_on_scores(path):
    """In place of list_tunes: a reading that no Python code can interrupt in time."""
    while path.suffix == ".abc":
        pass
    return [path]


@pytest.fixture
def raw():
    """Opens a connection to an address and sends bytes."""
    with ExitStack() as stack:

        def connect(address, data=b""):
            host, port = address.removeprefix("http://").split(":")
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
            connection.sendall(data)
            return connection

        yield connect


def received(connection):
    """What comes until the server closes the connection."""
    answer = b""
    try:
        while data := connection.recv(1 << 16):
            answer += data
    except ConnectionError:
        pass
    return answer


BOUNDARY = b"--x\r\nContent-Disposition: form-data; name=file; filename=%s\r\n\r\n"
END = b"\r\n--x--\r\n"


def upload(name, content=b"a jig", length=None, method=b"POST"):
    """The bytes of a request that uploads a file."""
    body = BOUNDARY % name.encode() + content + END
    head = b"%s /api/search HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" % method
    head += b"Content-Type: multipart/form-data; boundary=x\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % (len(body) if length is None else length) + body


def test_an_upload_that_takes_too_long_stops_nobody(encoder, collection, folder, monkeypatch, raw):
    monkeypatch.setattr(web, "list_tunes", hang_on_scores)
    limited = CLaMP3Encoder(encoder.loaded, device="cpu", limits=Limits(5))
    with running(web.create_app(limited, collection, folder)) as address:
        slow = raw(address, upload("slow.abc"))
        for path in ("/api/search?q=a", at("similar", "reel.abc"), at("roll.svg", "scale.mid"), "/"):
            assert urlopen(address + path, timeout=60).status == 200
        assert not select.select([slow], [], [], 0)[0]  # the upload has no answer yet
        assert b"took more than 5 seconds" in received(slow)
        assert urlopen(address + "/api/search?q=a").status == 200


def test_a_client_that_leaves_frees_its_place(encoder, collection, folder, monkeypatch, raw):
    monkeypatch.setattr(web, "list_tunes", hang_on_scores)
    limited = CLaMP3Encoder(encoder.loaded, device="cpu", limits=Limits(600))
    app = web.create_app(limited, collection, folder)
    with running(app) as address:
        assert urlopen(address).status == 200
        app.state.site.reading = Slots(1)
        slow = raw(address, upload("slow.abc"))
        waiting = raw(address, upload("quick.txt"))
        time.sleep(1)
        slow.close()
        assert b"200 OK" in received(waiting)


def test_many_uploads_at_once_are_refused(client, monkeypatch):
    monkeypatch.setattr(web, "MOST_UPLOADS", 0)
    assert "try again later" in refusal(client.post("/api/search", files={"file": ("a.txt", b"a jig")}), 503)


@pytest.mark.parametrize("parts", [[], [b"x"] * 1000])
def test_slow_uploads_are_cut_off(encoder, collection, folder, parts, monkeypatch, raw):
    """One stops, the other one trickles. Neither keeps its connection."""
    monkeypatch.setattr(guard, "PAUSE_SECONDS", 0.5)
    monkeypatch.setattr(guard, "BODY_SECONDS", 1.0)
    monkeypatch.setattr(guard, "HEAD_SECONDS", 0.5)
    with running(web.create_app(encoder, collection, folder)) as address:
        slow = raw(address, upload("a.txt", length=10**6))
        with suppress(ConnectionError):
            for part in parts:
                slow.sendall(part)
                time.sleep(0.1)
            assert not parts, "the connection was kept"
        assert parts or b" 408 " in received(slow)


@pytest.mark.parametrize("part", [b"", b"GET / HTTP/1.1\r\nHost: local"])
def test_connections_without_a_request_are_closed(encoder, collection, folder, part, monkeypatch, raw):
    monkeypatch.setattr(guard, "HEAD_SECONDS", 0.5)
    with running(web.create_app(encoder, collection, folder)) as address:
        assert received(raw(address, part)) == b""


def test_a_client_that_does_not_read_is_cut_off(encoder, tmp_path, monkeypatch, raw):
    monkeypatch.setattr(guard, "STALL_SECONDS", 0.5)
    (tmp_path / "a.txt").write_bytes(b"a jig\n" * 10**7)
    collection = Collection.of([tmp_path / "a.txt"], np.ones((1, encoder.dimension), np.float32))
    with running(web.create_app(encoder, collection, tmp_path)) as address:
        slow = raw(address, b"GET /api/file?source=a.txt HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(2)
        assert len(received(slow)) < 6 * 10**7


def test_connections_are_limited_in_number(encoder, collection, folder, monkeypatch, raw):
    monkeypatch.setattr(web, "MOST_CONNECTIONS", 3)
    monkeypatch.setattr(guard, "HEAD_SECONDS", 2.0)
    with running(web.create_app(encoder, collection, folder)) as address:
        idle = [raw(address) for _ in range(3)]
        with pytest.raises(HTTPError, match="503"):
            urlopen(f"{address}/api/collection")
        for connection in idle:
            assert received(connection) == b""
        assert urlopen(f"{address}/api/collection").status == 200


@pytest.mark.parametrize(
    "sizes, status",
    [(["abc"], 400), (["-1"], 400), (["1", "2"], 400), (["٣"], 400), (["9" * 5000], 413), (["1e3"], 400)],
)
def test_false_sizes_are_refused(client, sizes, status):
    headers = [("content-length", size.encode()) for size in sizes]
    for method in ("GET", "POST"):
        assert refusal(client.request(method, "/api/search?q=a", headers=headers), status).startswith("expected ")


def test_foreign_origins_are_refused(client):
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://[", ""):
        assert "another site" in refusal(client.get("/api/search?q=a", headers={"origin": origin}), 403)
    own = {"origin": HERE.upper().replace("HTTP", "http")}
    assert client.get("/api/search?q=a", headers=own).status_code == 200
    assert client.get("/api/search?q=a", headers={"origin": "null", "sec-fetch-site": "none"}).status_code == 200
    both = [("origin", HERE), ("origin", "http://evil.example")]
    refusal(client.get("/api/search?q=a", headers=both), 403)


def test_answers_hold_no_folders_of_this_machine():
    for path in (Path(tempfile.gettempdir(), "x/y.abc"), Path(sys.prefix, "lib/y.abc"), Path.home() / "weights/y.abc"):
        answer = guard.refusal(Headers({}), InputError(f"OSError: no space left in {str(path)!r}, in 4/4 or 6/8"))
        assert json.loads(answer.body) == {"error": "OSError: no space left in 'y.abc', in 4/4 or 6/8"}


SERVER = """
import sys
from clamplib.app import cli, web
def hang(path):
    while path.suffix == ".abc": pass
    return [path]
web.list_tunes = hang
sys.exit(cli.main(["serve", sys.argv[1], "--variant", "mini", "--port", "0"]))
"""
HOSTILE = [  # and whether an answer must come
    (b"\r\n\r\n", False),
    (b"\x16\x03\x01\x02", False),
    (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", True),
    (b"GET /" + b"a" * 100_000, True),
    (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000, True),
    (b"GET /api/search?q=%ff%00%ed%a0%80 HTTP/1.1\r\nHost: localhost\r\n\r\n", True),
    (upload("a.txt").replace(b"Content-Length: ", b"Content-Length: x"), True),
    (upload("a.txt", length=-1), True),
    (upload("a.txt").replace(b"Content-Length", b"Content-Length: 1\r\nContent-Length"), True),
    (upload("a.txt", length=10**30), True),
    (upload("a.txt", length=10**9), True),
    (upload("a.txt", length=5), True),  # the rest is no request
    (upload("a.txt").replace(b"Content-Length", b"Transfer-Encoding: chunked\r\nX"), True),
    (upload("a.txt").replace(b"Content-Length", b"Transfer-Encoding: gzip\r\nX"), True),
    (upload("a.txt", method=b"GET") + b"\xff" * 100, True),
    (upload("a.txt") + upload("a.txt"), True),
    (upload("\0.txt"), True),
    (upload("a.txt").replace(b"boundary=x", b"boundary="), True),
    (upload("a.txt", length=1000), False),  # the client leaves in the middle
    (upload("a.abc"), False),
    (b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50, False),
]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_takes_hostile_requests_without_a_traceback_and_ends_in_seconds(number, tmp_path, folder, raw):
    with (tmp_path / "errors").open("w") as errors:
        command = [sys.executable, "-u", "-c", SERVER, str(folder)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        address = re.search(r"http://\S+", server.stdout.readline())[0]
        for request, answered in HOSTILE:
            connection = raw(address)
            with suppress(ConnectionError):
                connection.sendall(request)
            if answered:
                with suppress(ConnectionError):
                    assert connection.recv(12).startswith(b"HTTP/1.1 "), request[:80]
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leaves abruptly
            connection.close()
        assert urlopen(f"{address}/api/search?q=a", timeout=60).status == 200
        for request in (upload("a.abc"), upload("a.txt", length=1000), b""):
            raw(address, request)
        time.sleep(2)
        own = children(server.pid)
        assert own
        server.send_signal(number)
        assert server.wait(20) in (0, -number)
        wait_for(lambda: not [pid for pid in own if Path(f"/proc/{pid}/cmdline").exists()])
    finally:
        server.kill()
        server.stdout.close()
    log = (tmp_path / "errors").read_text()
    assert "Traceback" not in log, log


def children(pid):
    """The processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


# ------------------------------------------------------------------------------------ what the page shows


def test_the_collection_is_described(client, folder):
    about = client.get("/api/collection").json()
    assert (about["name"], about["total"], about["failures"]) == ("music", 8, 0)
    assert about["modalities"] == {"score": 4, "midi": 2, "audio": 1, "text": 1}
    items = {(item["name"], item["tune"]): item for item in client.get("/api/search?q=a").json()["results"]}
    assert items["reel.abc", None]["title"] == TITLE.replace("&amp;", "&")
    assert items["book.abc", 2]["title"] == "Second"
    assert items["air.musicxml", None] | {"title": "An Air", "folder": "sub"} == items["air.musicxml", None]
    assert items["scale.mid", None] | {"title": None, "folder": ""} == items["scale.mid", None]


def test_names_that_are_not_unicode_can_be_shown(encoder, tmp_path):
    path = Path(os.fsdecode(bytes(tmp_path) + b"/sl\xe4ngpolska.txt"))
    path.write_text("a polska")
    collection = embed_sources(encoder, find_sources(tmp_path), workers=1, progress=False)
    with TestClient(web.create_app(encoder, collection, tmp_path), base_url=HERE) as client:
        (item,) = client.get("/api/search?q=polska").json()["results"]
        assert item["name"] == r"'sl\udce4ngpolska.txt'" and item["address"] == r"sl\udce4ngpolska.txt"
        assert client.get(item["file"]).text == "a polska"


def test_recordings_stream_by_ranges(client, folder):
    content = (folder / "tone.wav").read_bytes()
    (item,) = client.get("/api/search?q=a&modality=audio").json()["results"]
    assert item["sound"] == item["file"]
    part = client.get(item["sound"], headers={"range": "bytes=10-29"})
    assert part.status_code == 206 and part.content == content[10:30]
    assert part.headers["content-range"] == f"bytes 10-29/{len(content)}"
    whole = client.get(item["sound"])
    assert whole.content == content and whole.headers["content-type"] == "audio/wav"


def test_score_files_are_never_shown_as_pages(client):
    response = client.get(at("file", "sub/air.musicxml"))
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-disposition"] == 'attachment; filename="air.musicxml"'
    assert "sandbox" in response.headers["content-security-policy"]
    text = client.get(at("file", "air.txt"))
    assert text.headers["content-type"] == "text/plain; charset=utf-8" and "悲しい歌" in text.text


def test_previews_of_each_kind(client):
    reel, first, second = (client.get(at("notation.svg", name)) for name in ("reel.abc", "book.abc#1", "book.abc#2"))
    for svg in (reel, first, second):
        assert svg.headers["content-type"] == "image/svg+xml" and "<script" not in svg.text
        assert svg.headers["content-security-policy"] == "default-src 'none'; style-src 'unsafe-inline'; sandbox"
    assert second.text.count("keyAccid") < first.text.count("keyAccid")  # one sharp, not two
    narrow = client.get(at("notation.svg", "reel.abc", narrow=""))
    assert 'viewBox="0 0 360 ' in narrow.text and 'viewBox="0 0 640 ' in reel.text
    assert client.get(at("roll.svg", "scale.mid")).text.count("M") == 12 + 2  # and the lines of C4 and C5
    sound, rate = soundfile.read(io.BytesIO(client.get(at("sound", "scale.mid")).content))
    assert len(sound) / rate == pytest.approx(12 * 0.25 + 1, abs=0.1)
    assert "expected midi" in refusal(client.get(at("roll.svg", "air.txt")), 404)


def test_a_preview_that_fails_says_why(encoder, tmp_path):
    midi_file(tmp_path / "tune.mid")
    collection = embed_sources(encoder, find_sources(tmp_path), workers=1, progress=False)
    with TestClient(web.create_app(encoder, collection, tmp_path), base_url=HERE) as client:
        assert client.get(at("roll.svg", "tune.mid")).status_code == 200
        (tmp_path / "tune.mid").write_bytes(b"MThd")
        os.utime(tmp_path / "tune.mid", (0, 0))  # as a file that is put back
        error = refusal(client.get(at("roll.svg", "tune.mid")), 400)
        assert error.startswith("tune.mid: expected whole tracks") and str(tmp_path) not in error


def test_the_server_listens_at_the_printed_address(encoder, collection, folder, capsys, monkeypatch):
    opened, served = [], []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: served.append(sockets[0].getsockname()))
    web.serve_page(encoder, collection, folder, port=0, open_browser=True)
    ((host, port),) = served
    assert host == "127.0.0.1" and opened == [f"http://127.0.0.1:{port}"]
    assert f"Search 8 sources at http://127.0.0.1:{port}" in capsys.readouterr().out
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="choose another port"):
        web.serve_page(encoder, collection, folder, port=taken.getsockname()[1])


@contextmanager
def running(app):
    """Runs a server in a thread, and yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = web.create_server(app)
        thread = threading.Thread(target=server.run, args=[[listening]])
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def browsing(app, **options):
    """Yields a page of a browser. No script may fail in it, and nothing may break its content security policy."""
    playwright = pytest.importorskip("playwright.sync_api")
    faults = []
    with running(app) as address, playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(base_url=address, **options)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if "Policy" in message.text else None)
        page.set_default_timeout(60_000)
        yield page
        browser.close()
    assert not faults


def settled(page, beginning=""):
    """Waits for an answer that begins so, and for its pictures; returns the status line."""
    from playwright.sync_api import expect

    status = page.get_by_role("status")
    expect(status).to_have_text(re.compile(rf"^(?!Searching){beginning}."), timeout=60_000)
    page.wait_for_function("""async () => {
        for (const image of document.images) {
          image.loading = "eager";
          await image.decode().catch(() => {});
        }
        return true;
    }""")
    return status.inner_text()


def drop(page, path):
    """Drops a file on the page."""
    page.evaluate(
        """([name, bytes]) => {
          const files = new DataTransfer();
          files.items.add(new File([new Uint8Array(bytes)], name));
          dispatchEvent(new DragEvent("drop", { dataTransfer: files, cancelable: true }));
        }""",
        [path.name, list(path.read_bytes())],
    )


PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@in_a_browser
def test_the_page_in_a_browser(captioning, collection, folder, tmp_path):
    """A link with a query shows its results; links, drops and going back work; titles are never run as code."""
    app = web.create_app(captioning, collection, folder)
    query = {"q": "un reel animé", "modality": "score"}
    with TestClient(app, base_url=HERE) as client:
        items = client.get("/api/search", params=query).json()["results"]
    with browsing(app) as page:
        page.goto(f"/?{urlencode(query)}")
        status = settled(page)
        assert status == "4 results for “un reel animé”, closest first" and page.title() == "un reel animé · CLaMP 3"
        titles = page.locator("#results h2").all_inner_texts()
        assert titles == [item["title"] for item in items] and len(titles) == 4
        assert page.get_by_alt_text("Notation of the beginning of An Air").count() == 1
        page.get_by_role("link", name="More like Second").click()
        assert settled(page, "3 results") == "3 results for “Second”, closest first"
        assert page.url.endswith("?like=book.abc%232&modality=score")
        page.reload()
        assert settled(page) == "3 results for “Second”, closest first"
        (tmp_path / "<b>.txt").write_text("a reel")
        drop(page, tmp_path / "<b>.txt")
        assert settled(page, "4 results") == "4 results for “<b>.txt”, closest first"
        page.get_by_label("Search by file").set_input_files(image_file(tmp_path / "photo.png"))
        assert settled(page, ".*photo") == f"4 results for “photo.png” (a picture of “{CAPTION}”), closest first"
        for _ in range(3):
            page.go_back()
        assert settled(page, ".*animé") == status and not page.locator(".fault").count()


@in_a_browser
def test_the_page_on_a_phone(captioning, folder, tmp_path):
    """Nothing is wider than the window, no input makes it zoom, and everything to tap is large enough for a finger."""
    name = "a_name_that_has_no_place_to_break" * 6
    music = Path(shutil.copytree(folder, tmp_path / "music", symlinks=True))
    (music / f"{name}.txt").write_text(name * 20)
    image_file(music / "wide.png")
    sources = find_sources(music, captioning.suffixes)
    vectors = np.random.default_rng(0).normal(size=(len(sources), captioning.dimension)).astype(np.float32)
    with browsing(web.create_app(captioning, Collection.of(sources, vectors), music), **PHONE) as page:
        for address, least in (("/", 12), (f"/?q={name}", 30), ("/api/file?source=none", 1)):
            page.goto(address)
            if least > 1:
                page.get_by_text("Texts").wait_for()
            if "q=" in address:
                settled(page, r"\d+ results")
                assert page.locator("picture img").first.evaluate("image => image.currentSrc").endswith("&narrow")
                page.locator("article:has(picture) .play").first.tap()
                page.locator("audio").nth(1).wait_for()
            assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth && innerWidth === 390")
            heights = page.locator("a, button, label.button, #filters label, audio, #q").evaluate_all(
                """targets => targets.filter(target => target.checkVisibility()).map(
                  target => [target.getBoundingClientRect().height, target.outerHTML])"""
            )
            assert len(heights) >= least and not [target for height, target in heights if height < 40]
            fonts = page.locator("input, textarea, select").evaluate_all(
                "inputs => inputs.map(input => parseFloat(getComputedStyle(input).fontSize))"
            )
            assert min(fonts, default=16) >= 16


FOCUSED = """() => {
  const [focused, label] = [document.activeElement, document.activeElement.labels?.[0]];
  const seen = [focused, label].some((element) => element && getComputedStyle(element).outlineStyle !== "none");
  return [focused.localName, seen];
}"""


def tab_to(page, selector):
    """Presses Tab until such an element has the focus. Every element on the way must show that it has it."""
    for _ in range(60):
        page.keyboard.press("Tab")
        name, seen = page.evaluate(FOCUSED)
        assert seen or name == "body", name
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"no way to {selector} by the Tab key")


@in_a_browser
def test_the_page_by_the_keyboard_alone(encoder, collection, folder):
    with browsing(web.create_app(encoder, collection, folder)) as page:
        page.goto("/")
        page.get_by_text("Texts").wait_for()
        tab_to(page, "#q")
        page.keyboard.type("a lively reel")
        page.keyboard.press("Enter")
        assert settled(page) == "8 results for “a lively reel”, closest first" and "?q=a+lively+reel" in page.url
        tab_to(page, "#filters input")
        page.keyboard.press("ArrowRight")
        assert settled(page, "4 results") == "4 results for “a lively reel”, closest first"
        tab_to(page, "#results a.similar")
        page.keyboard.press("Enter")
        assert settled(page, "3 results").startswith("3 results for “") and "?like=" in page.url
        tab_to(page, "#results button.play")
        page.keyboard.press("Enter")
        page.wait_for_function(
            "() => [...document.querySelectorAll('audio')].some(a => !a.paused && a.currentTime > 0)"
        )
        assert page.evaluate("document.activeElement.localName") == "audio"


@in_a_browser
def test_more_results_get_the_focus(encoder, tmp_path):
    for number in range(25):
        (tmp_path / f"{number}.txt").write_text(f"tune number {number}")
    collection = embed_sources(encoder, find_sources(tmp_path), workers=1, progress=False)
    with browsing(web.create_app(encoder, collection, tmp_path)) as page:
        page.goto("/?q=tune")
        assert settled(page) == "20 of 25 results for “tune”, closest first"
        tab_to(page, "#more")
        page.keyboard.press("Enter")
        assert settled(page, "25 results") == "25 results for “tune”, closest first"
        page.wait_for_function("() => document.activeElement.closest('li:nth-child(21)')")


@in_a_browser
def test_the_page_is_accessible_in_the_light_and_in_the_dark(captioning, collection, folder):
    """Checked by axe: names, roles, headings, landmarks, contrast. Also, nothing moves."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    grounds = []
    with browsing(web.create_app(captioning, collection, folder)) as page:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            for address in ("/", "/?q=a+reel", "/?file=gone.mid"):
                page.goto(address)
                page.get_by_text("Texts").wait_for()
                if "q=" in address:
                    settled(page, r"\d+ results")
                    page.locator(".play:visible").first.click()
                found = axe.run(page)
                assert not found.violations_count, found.generate_report()
                assert page.locator("h1").count() == 1 and page.evaluate("document.getAnimations().length") == 0
                assert page.get_by_role("status").count() == 1
            grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.goto("/?q=a+reel")
        settled(page, r"\d+ results")
        assert page.get_by_role("list", name="Results").get_by_role("listitem").count() == 8
    assert grounds == ["rgb(251, 250, 247)", "rgb(23, 22, 21)"]
