import asyncio
import html
import io
import os
import re
import shutil
import socket
import subprocess
import threading
import zipfile
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import mido
import numpy as np
import pytest
from sound import sine, write

pytest.importorskip("starlette", reason="the search page is the extra clamplib[web]")
pytest.importorskip("uvicorn", reason="the search page is the extra clamplib[web]")
import soundfile
import uvicorn
import verovio
from starlette.testclient import TestClient

from clamplib import web
from clamplib.encoder import CLaMP3Encoder
from clamplib.files import InputError
from clamplib.library import embed_library, find_sources
from clamplib.notation import abc_to_xml, interleave, xml_to_abc
from clamplib.previews import Previews, draw_roll, engrave, play
from clamplib.scores import title

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HERE = "http://127.0.0.1:8642"
TITLE = "<script>document.title = 'broken out'</script>&amp;"
REEL = "X:1\nT:{}\nM:4/4\nL:1/8\nK:D\n" + "dfaf gfed|cdef gfed|dfaf gfed|cABc d4|\n" * 2
KERN = "!!!OTL: A scale\n**kern\n*clefG2\n*k[]\n*M4/4\n=1\n4c\n4d\n4e\n4f\n=2\n1g\n==\n*-\n"
OUTSIDE = "outside.mid"


def midi_file(path, notes=((69, 480),), tempo=500_000, lead=0, program=73):
    """One voice: (pitch, ticks) one after the other, at 480 ticks a beat."""
    track = mido.MidiTrack(
        [mido.MetaMessage("set_tempo", tempo=tempo), mido.Message("program_change", program=program)]
    )
    for number, (pitch, ticks) in enumerate(notes):
        track.append(mido.Message("note_on", note=pitch, velocity=90, time=0 if number else lead))
        track.append(mido.Message("note_on", note=pitch, velocity=0, time=ticks))
    mido.MidiFile(ticks_per_beat=480, tracks=[track]).save(path)
    return path


@pytest.fixture(scope="module")
def encoder():
    return CLaMP3Encoder.from_pretrained("mini", device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A collection of each kind, with a link that leads out of it."""
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
def library(encoder, folder):
    library = embed_library(encoder, find_sources(folder), workers=1, progress=False)
    assert not library.failures and len(library) == 8
    return library


@pytest.fixture(scope="module")
def client(encoder, library, folder):
    with TestClient(web.create_app(encoder, library, folder), base_url=HERE) as client:
        yield client


def number_of(library, name):
    return next(number for number, source in enumerate(library.sources) if Path(source).name == name)


def found(response):
    assert response.status_code == 200, response.text
    return [(item["number"], item["similarity"]) for item in response.json()["results"]]


def refusal(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()["error"]


def check_closest(results, vector, library, numbers):
    """Each of `numbers`, and in order of its cosine with the vector."""
    similarities = library.matrix @ (vector / np.linalg.norm(vector))
    expected = sorted(numbers, key=lambda number: -similarities[number])
    assert [number for number, _ in results] == expected
    np.testing.assert_allclose([value for _, value in results], similarities[expected], atol=1e-4)


def test_a_text_finds_the_closest(client, encoder, library):
    vector = encoder.encode("a lively reel")[0]
    check_closest(found(client.get("/api/search?q=a+lively+reel")), vector, library, range(8))
    assert (
        found(client.get("/api/search?q=a+lively+reel&top_k=2")) == found(client.get("/api/search?q=a lively reel"))[:2]
    )
    answer = client.get("/api/search?q=+a+lively+reel+&modality=score&top_k=2").json()
    assert answer["query"] == {"text": "a lively reel"} and answer["total"] == 4
    assert {item["modality"] for item in answer["results"]} == {"score"} and len(answer["results"]) == 2


def test_more_like_this_compares_the_stored_vectors_and_leaves_itself_out(client, library):
    number = number_of(library, "scale.mid")
    answer = client.get(f"/api/similar/{number}")
    check_closest(found(answer), library.vectors[number], library, set(range(8)) - {number})
    assert answer.json()["query"]["item"]["name"] == "scale.mid" and answer.json()["total"] == 7


@pytest.mark.parametrize("name", ["reel.abc", "scale.mid", "tone.wav", "air.txt"])
def test_an_uploaded_file_finds_itself_and_stays_nowhere(client, folder, library, name, tmp_path, monkeypatch):
    before = sorted(folder.rglob("*"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    answer = client.post("/api/search?top_k=1", files={"file": (name.upper(), (folder / name).read_bytes())})
    ((number, similarity),) = found(answer)
    twins = {"reel.abc": {"reel.abc", "book.abc", "air.musicxml"}}  # which hold the same notes
    assert Path(library.sources[number]).name in twins.get(name, {name}) and similarity == pytest.approx(1, abs=1e-3)
    assert answer.json()["query"] == {"file": name.upper()}
    assert not list(tmp_path.iterdir()) and sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("tune.abc", b"no music", "tune.abc: "),
        ("tune.mid", b"RIFF", "tune.mid: expected a MIDI file (it begins with MThd), came b'RIFF'"),
        ("tune.musicxml", b"<html/>", "came <html>"),
        ("tune.mp3", b"nothing to hear", "tune.mp3: expected a recording"),
        ("features.npy", b"\x93NUMPY", "features.npy: expected a file ending in .txt"),
        ("<b>.exe", b"MZ", "<b>.exe: expected a file ending in .txt"),
        ("../../tune.mid", b"", "tune.mid: expected a MIDI file"),
    ],
)
def test_an_upload_that_is_no_music_is_refused_in_a_sentence(client, name, content, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    error = refusal(client.post("/api/search", files={"file": (name, content)}), 400)
    assert expected in error and str(tmp_path) not in error
    assert not list(tmp_path.iterdir())


def test_an_upload_needs_its_field(client):
    for body in ({"data": {"file": "words"}}, {"files": {"other": ("a.txt", b"a")}}, {"content": b"bare"}, {}):
        assert refusal(client.post("/api/search", **body), 400)


@pytest.mark.parametrize("stated", [True, False])
def test_an_upload_is_limited_in_size(encoder, library, folder, stated, monkeypatch):
    monkeypatch.setattr(web, "MAX_UPLOAD", 2**20)
    with TestClient(web.create_app(encoder, library, folder), base_url=HERE) as client:
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
def test_a_search_that_makes_no_sense_is_refused(client, query):
    assert refusal(client.get(f"/api/search{query}"), 400).startswith("expected ")


@pytest.mark.parametrize(
    "number", ["8", "-1", "1.0", "one", "²", "9" * 5000, "..%2f..%2fetc%2fpasswd", "%2e%2e", "0%00", "reel.abc"]
)
def test_items_are_their_numbers_and_nothing_else(client, number):
    for path in ("similar/{}", "items/{}/file", "items/{}/sound", "items/{}/notation.svg", "items/{}/roll.svg"):
        refusal(client.get("/api/" + path.format(number)), 404)


@pytest.mark.parametrize(
    "path", ["/../web.py", "/..%2fweb.py", "/%2e%2e/web.py", "//etc/passwd", "/etc/passwd", "/%00"]
)
def test_of_the_disk_only_the_page_is_served(client, path):
    refusal(client.get(path), 404)


def test_a_link_that_leads_out_is_found_but_not_served(client, library):
    number = number_of(library, "link.mid")
    assert client.get(f"/api/similar/{number}").status_code == 200
    for what in ("file", "roll.svg", "sound"):
        assert "leads out of the folder" in refusal(client.get(f"/api/items/{number}/{what}"), 403)


def test_a_file_that_is_gone_is_said_so(encoder, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("a jig")
    library = embed_library(encoder, find_sources(tmp_path), workers=1, progress=False)
    (tmp_path / "a.txt").unlink()
    with TestClient(web.create_app(encoder, library, tmp_path), base_url=HERE) as client:
        assert refusal(client.get("/api/items/0/file"), 404) == "a.txt: the file is gone"
        assert client.get("/api/items/1/file").text == "a jig"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8642", "", "[::2]:1"]
)
def test_other_hosts_are_refused(client, host):
    assert client.get("/api/library", headers={"host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8642", "LOCALHOST:8642", "music.local"])
def test_own_hosts_are_served(encoder, library, folder, host):
    with TestClient(web.create_app(encoder, library, folder, "music.local"), base_url=HERE) as client:
        assert client.get("/api/library", headers={"host": host}).status_code == 200


def test_pages_of_other_sites_get_nothing(client):
    for site in ("cross-site", "same-site"):
        assert refusal(client.get("/api/search?q=a", headers={"sec-fetch-site": site}), 403)
        assert client.get("/?q=a", headers={"sec-fetch-site": site}).status_code == 200  # a link that was shared
    assert client.get("/api/library", headers={"sec-fetch-site": "same-origin"}).status_code == 200
    assert client.get("/api/library").headers["cross-origin-resource-policy"] == "same-origin"


def test_the_page_needs_no_other_host_and_no_inline_code(client):
    policy = client.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; ") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    for name in ("", "page.js", "page.css", "icon.svg"):
        response = client.get(f"/{name}")
        assert response.status_code == 200 and response.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"""(?<!xmlns=")https?://|url\(|\sstyle=|\son\w+=|innerHTML|<script>""", response.text)


def test_what_there_is(client, folder):
    about = client.get("/api/library").json()
    assert (about["name"], about["total"], about["failures"]) == ("music", 8, 0)
    assert about["modalities"] == {"score": 4, "midi": 2, "audio": 1, "text": 1}
    items = {(item["name"], item["tune"]): item for item in client.get("/api/search?q=a").json()["results"]}
    assert items["reel.abc", None]["title"] == TITLE.replace("&amp;", "&")
    assert items["book.abc", 2]["title"] == "Second"
    assert items["air.musicxml", None] | {"title": "An Air", "folder": "sub"} == items["air.musicxml", None]
    assert items["scale.mid", None] | {"title": None, "folder": ""} == items["scale.mid", None]


def test_names_that_are_no_unicode_can_be_shown(encoder, tmp_path):
    path = Path(os.fsdecode(bytes(tmp_path) + b"/sl\xe4ngpolska.txt"))
    path.write_text("a polska")
    library = embed_library(encoder, find_sources(tmp_path), workers=1, progress=False)
    with TestClient(web.create_app(encoder, library, tmp_path), base_url=HERE) as client:
        (item,) = client.get("/api/search?q=polska").json()["results"]
        assert item["name"] == r"'sl\udce4ngpolska.txt'"
        assert client.get(item["file"]).text == "a polska"


def test_recordings_stream_by_ranges(client, folder, library):
    content = (folder / "tone.wav").read_bytes()
    (item,) = client.get("/api/search?q=a&modality=audio").json()["results"]
    assert item["sound"] == item["file"]
    part = client.get(item["sound"], headers={"range": "bytes=10-29"})
    assert part.status_code == 206 and part.content == content[10:30]
    assert part.headers["content-range"] == f"bytes 10-29/{len(content)}"
    whole = client.get(item["sound"])
    assert whole.content == content and whole.headers["content-type"] == "audio/wav"


def test_files_of_scores_are_never_shown_as_pages(client, library):
    response = client.get(f"/api/items/{number_of(library, 'air.musicxml')}/file")
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-disposition"] == 'attachment; filename="air.musicxml"'
    assert "sandbox" in response.headers["content-security-policy"]
    text = client.get(f"/api/items/{number_of(library, 'air.txt')}/file")
    assert text.headers["content-type"] == "text/plain; charset=utf-8" and "悲しい歌" in text.text


def test_previews_of_each_kind(client, library):
    answers = {
        name: client.get(f"/api/items/{number_of(library, name)}/notation.svg") for name in ("reel.abc", "book.abc")
    }
    for svg in answers.values():
        assert svg.headers["content-type"] == "image/svg+xml" and "<script" not in svg.text
        assert svg.headers["content-security-policy"] == "default-src 'none'; style-src 'unsafe-inline'; sandbox"
    second = client.get(f"/api/items/{number_of(library, 'book.abc') + 1}/notation.svg")
    assert second.text.count("keyAccid") < answers["book.abc"].text.count("keyAccid")  # one sharp, not two
    narrow = client.get(f"/api/items/{number_of(library, 'reel.abc')}/notation.svg?narrow")
    assert 'viewBox="0 0 360 ' in narrow.text and 'viewBox="0 0 640 ' in answers["reel.abc"].text
    number = number_of(library, "scale.mid")
    assert client.get(f"/api/items/{number}/roll.svg").text.count("M") == 12 + 2  # and the lines of C4 and C5
    sound, rate = soundfile.read(io.BytesIO(client.get(f"/api/items/{number}/sound").content))
    assert len(sound) / rate == pytest.approx(12 * 0.25 + 1, abs=0.1)
    assert "expected midi for that" in refusal(client.get(f"/api/items/{number_of(library, 'air.txt')}/roll.svg"), 404)


def test_a_preview_that_fails_says_why(encoder, tmp_path):
    midi_file(tmp_path / "tune.mid")
    library = embed_library(encoder, find_sources(tmp_path), workers=1, progress=False)
    with TestClient(web.create_app(encoder, library, tmp_path), base_url=HERE) as client:
        assert client.get("/api/items/0/roll.svg").status_code == 200
        (tmp_path / "tune.mid").write_bytes(b"MThd")
        os.utime(tmp_path / "tune.mid", (2**33, 2**33))  # newer than its picture
        error = refusal(client.get("/api/items/0/roll.svg"), 400)
        assert error.startswith("tune.mid: expected whole tracks") and str(tmp_path) not in error


def mei(path):
    toolkit = verovio.toolkit()
    toolkit.loadData(KERN)
    path.write_text(toolkit.getMEI())


def mxl(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("score.xml", abc_to_xml("X:1\nT:A scale\nL:1/4\nK:C\nCDEF|G4|\n"))


def wild(path):
    path.write_bytes("X:1\nT:A scale\nC:Bartók\nL:1/4\nK:C\nCDEF|G4|\n\nSome prose.\n".encode("latin-1"))


def interleaved(path):
    path.write_text(interleave(xml_to_abc(abc_to_xml("X:1\nL:1/4\nK:C\nCDEF|G4|\n").encode())))


@pytest.mark.parametrize(
    "name, make, called",
    [
        ("a.krn", lambda path: path.write_text(KERN), "A scale"),
        ("a.mei", mei, "A scale"),
        ("a.mxl", mxl, "A scale"),
        ("a.abc", wild, "A scale"),
        ("a.abc", interleaved, None),
    ],
)
def test_scores_of_any_kind_are_engraved_and_played(tmp_path, name, make, called):
    path = tmp_path / name
    make(path)
    assert title(path) == called
    engrave(path, tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text()
    assert svg.count('class="note"') == 5 and svg.count('class="clef"') == 1
    play(path, tmp_path / "a.wav")
    assert soundfile.info(tmp_path / "a.wav").duration == pytest.approx(4 + 1, abs=0.1)


def test_of_a_long_score_the_beginning_is_engraved(tmp_path):
    (tmp_path / "a.abc").write_text("X:1\nL:1/4\nK:C\n" + "CDEF|\n" * 2000)
    engrave(tmp_path / "a.abc", tmp_path / "a.svg")
    assert 4 < (tmp_path / "a.svg").read_text().count('class="measure') < 64


def test_what_is_played_is_what_is_written(tmp_path):
    """A flute plays A4 for a second, at a tempo of its own and behind ten minutes of rests."""
    midi_file(tmp_path / "a.mid", [(69, 960)], tempo=500_000, lead=960 * 600)
    play(tmp_path / "a.mid", tmp_path / "a.wav")
    sound, rate = soundfile.read(tmp_path / "a.wav")
    assert sound.ndim == 1 and len(sound) / rate == pytest.approx(2, abs=0.1)
    spectrum = np.abs(np.fft.rfft(sound[:rate]))
    assert spectrum.argmax() == pytest.approx(440, abs=5)


def test_no_more_than_a_minute_is_played(tmp_path):
    midi_file(tmp_path / "a.mid", [(60, 480)] * 10 + [(60, 480 * 10_000)], tempo=1_000_000)
    play(tmp_path / "a.mid", tmp_path / "a.wav")
    assert soundfile.info(tmp_path / "a.wav").duration < 62


def test_recordings_that_no_browser_plays_are_decoded(client, tmp_path):
    write(tmp_path / "a.aiff", sine(2, 22_050, 440.0), 22_050, "pcm_s16be")
    play(tmp_path / "a.aiff", tmp_path / "a.wav")
    sound, rate = soundfile.read(tmp_path / "a.wav")
    assert (len(sound), rate) == (88_200, 44_100)
    assert np.abs(np.fft.rfft(sound)).argmax() / 2 == pytest.approx(440, abs=1)


def test_a_roll_has_a_bar_for_each_note(tmp_path):
    midi_file(tmp_path / "a.mid", [(60 + step, 480) for step in (0, 2, 4)])
    draw_roll(tmp_path / "a.mid", tmp_path / "a.svg")
    (fill,) = re.findall(r'fill="[^"]*" d="([^"]*)"', (tmp_path / "a.svg").read_text())
    bars = np.array(re.findall(r"M(\S+) (\S+?)h(\S+?)v", fill), float)
    np.testing.assert_allclose(bars[:, 0], [0, 640 / 3, 1280 / 3], atol=0.1)  # three notes of a length, one by one
    np.testing.assert_allclose(bars[:, 1] - bars[0, 1], [0, -16, -32], atol=0.1)  # and two semitones up each
    mido.MidiFile(tracks=[mido.MidiTrack()]).save(tmp_path / "empty.mid")
    with pytest.raises(InputError, match="expected notes, found none"):
        draw_roll(tmp_path / "empty.mid", tmp_path / "b.svg")


def test_a_preview_that_kills_its_process_is_alone_in_it(tmp_path):
    def die(source, target):
        os._exit(1)

    def copy(source, target):
        shutil.copy(source, target)

    async def both():
        previews = Previews(tmp_path)
        with pytest.raises(InputError, match="the process that worked on it died"):
            await previews.get(die, tmp_path / "a", "b")
        made = await previews.get(copy, tmp_path / "a", "b")
        again = await previews.get(die, tmp_path / "a", "b")  # it is there
        previews.close()
        return made.read_text(), again

    (tmp_path / "a").write_text("text")
    assert asyncio.run(both()) == ("text", tmp_path / "b")


def test_a_preview_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    def sleep(source, target):
        threading.Event().wait()

    async def get():
        previews = Previews(tmp_path)
        with pytest.raises(InputError, match="it takes more than 0.1 seconds"):
            await previews.get(sleep, tmp_path / "a", "b")

    (tmp_path / "a").write_text("text")
    monkeypatch.setattr("clamplib.previews.PATIENCE", 0.1)
    asyncio.run(get())


def test_serve_listens_where_it_says(encoder, library, folder, capsys, monkeypatch):
    opened, served = [], []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: served.append(sockets[0].getsockname()))
    web.serve(encoder, library, folder, port=0, open_browser=True)
    ((host, port),) = served
    assert host == "127.0.0.1" and opened == [f"http://127.0.0.1:{port}"]
    assert f"Search 8 sources at http://127.0.0.1:{port}" in capsys.readouterr().out
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="choose another port"):
        web.serve(encoder, library, folder, port=taken.getsockname()[1])


@contextmanager
def running(app):
    """The address of a server in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, args=[[listening]])
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


DRIVER = """
const seen = (name) => { document.body.dataset[name] = document.querySelector("#status").textContent; };
const settled = async () => {
  do await new Promise((resolve) => setTimeout(resolve, 100));
  while (/^(|Searching…)$/.test(document.querySelector("#status").textContent));
};
document.addEventListener("securitypolicyviolation", (event) => { document.body.dataset.blocked = event.blockedURI; });
addEventListener("load", async () => {
  await settled();
  document.querySelector("a.similar").click();
  await settled();
  seen("similar");
  const files = new DataTransfer();
  files.items.add(new File(["no music"], "<b>.mid"));
  dispatchEvent(new DragEvent("drop", { dataTransfer: files, cancelable: true }));
  await settled();
  seen("dropped");
  history.go(-2);
  await new Promise((resolve) => addEventListener("popstate", resolve, { once: true }));
  await settled();
  seen("back");
});
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_page_in_a_browser(encoder, library, folder, tmp_path, monkeypatch):
    """A link with a query shows its results; clicks, drops and the way back work, and no title comes alive."""
    page = tmp_path / "page"
    shutil.copytree(web.PAGE, page)
    (page / "driver.js").write_text(DRIVER, encoding="utf-8")
    index = (page / "index.html").read_text(encoding="utf-8")
    (page / "index.html").write_text(index.replace("</head>", '<script src="driver.js"></script></head>'), "utf-8")
    monkeypatch.setattr(web, "PAGE", page)
    app = web.create_app(encoder, library, folder)
    query = {"q": "un reel animé", "modality": "score"}
    items = TestClient(app, base_url=HERE).get("/api/search", params=query).json()["results"]
    with running(app) as address:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command += ["--virtual-time-budget=60000", "--dump-dom", f"{address}/?{urlencode(query)}"]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, check=True)
    results = done.stdout.split('id="results"')[1].split("</ol>")[0]
    titles = [html.unescape(title) for title in re.findall(r"<h2[^>]*>(.*?)</h2>", results)]
    assert titles == [item["title"] for item in items] and len(titles) == 4
    assert 'alt="Notation of An Air, its beginning"' in results and 'class="fault"' not in results
    status = "All 4, closest first, to “un reel animé”"
    assert f"{status}</p>" in done.stdout and f'data-back="{status}"' in done.stdout
    assert f'data-similar="All 3, closest first, to “{html.escape(titles[0], quote=False)}”"' in done.stdout
    assert 'data-dropped="&lt;b&gt;.mid: expected a MIDI file' in done.stdout.replace("<b>", "&lt;b&gt;")
    assert "<title>un reel animé" in done.stdout and "data-blocked" not in done.stdout
