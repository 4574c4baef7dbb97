import asyncio
import os
import re
import shutil
import threading
import time
import zipfile

import mido
import numpy as np
import pytest
from sound import midi_file, sine, write

pytest.importorskip("verovio", reason="verovio is not installed: extra web")
pytest.importorskip("midirenderer", reason="midirenderer is not installed: extra web")
import soundfile
import verovio

from clamplib.app.previews import Previews, Titles, draw_roll, engrave, play
from clamplib.files import InputError
from clamplib.formats.notation import abc_to_xml, interleave, xml_to_abc
from clamplib.formats.score_files import read_title
from clamplib.jobs import Limits

KERN = "!!!OTL: A scale\n**kern\n*clefG2\n*k[]\n*M4/4\n=1\n4c\n4d\n4e\n4f\n=2\n1g\n==\n*-\n"


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
    assert read_title(path) == called
    engrave(path, tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text()
    assert svg.count('class="note"') == 5 and svg.count('class="clef"') == 1
    play(path, tmp_path / "a.wav")
    assert soundfile.info(tmp_path / "a.wav").duration == pytest.approx(4 + 1, abs=0.1)


def test_only_the_beginning_of_a_long_score_is_engraved(tmp_path):
    (tmp_path / "a.abc").write_text("X:1\nL:1/4\nK:C\n" + "CDEF|\n" * 2000)
    engrave(tmp_path / "a.abc", tmp_path / "a.svg")
    assert 4 < (tmp_path / "a.svg").read_text().count('class="measure') < 64


def test_the_sound_has_the_written_notes(tmp_path):
    """A flute plays A4 for a second, at a tempo of its own and after ten minutes of rests."""
    midi_file(tmp_path / "a.mid", [(69, 960)], tempo=500_000, lead=960 * 600)
    play(tmp_path / "a.mid", tmp_path / "a.wav")
    sound, rate = soundfile.read(tmp_path / "a.wav")
    assert sound.ndim == 1 and len(sound) / rate == pytest.approx(2, abs=0.1)
    spectrum = np.abs(np.fft.rfft(sound[:rate]))
    assert spectrum.argmax() == pytest.approx(440, abs=5)


def test_at_most_a_minute_is_played(tmp_path):
    midi_file(tmp_path / "a.mid", [(60, 480)] * 10 + [(60, 480 * 10_000)], tempo=1_000_000)
    play(tmp_path / "a.mid", tmp_path / "a.wav")
    assert soundfile.info(tmp_path / "a.wav").duration < 62


def test_recordings_are_decoded(tmp_path):
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
    np.testing.assert_allclose(
        bars[:, 0], [0, 640 / 3, 1280 / 3], atol=0.1
    )  # three notes of equal length, one after the other
    np.testing.assert_allclose(bars[:, 1] - bars[0, 1], [0, -16, -32], atol=0.1)  # each two semitones higher
    mido.MidiFile(tracks=[mido.MidiTrack()]).save(tmp_path / "empty.mid")
    with pytest.raises(InputError, match="expected notes, found none"):
        draw_roll(tmp_path / "empty.mid", tmp_path / "b.svg")


def test_a_preview_that_kills_its_process_fails_alone(tmp_path, monkeypatch):
    def die(source, target):
        os._exit(1)

    async def both():
        previews = Previews(tmp_path)
        for make in (die, shutil.copy):  # it is not tried again until its source changes
            with pytest.raises(InputError, match="the process that worked on it died"):
                await previews.get(make, tmp_path / "a", "b")
        made = await previews.get(shutil.copy, tmp_path / "a", "c")
        assert await previews.get(die, tmp_path / "a", "c") == made  # the file exists
        os.utime(tmp_path / "a", (2**33, 2**33))
        again = await previews.get(shutil.copy, tmp_path / "a", "b")
        again.unlink()  # as programs that clean temporary folders do
        again = await previews.get(shutil.copy, tmp_path / "a", "b")
        with pytest.raises(InputError, match="the process that worked on it died"):
            await previews.get(die, tmp_path / "a", "d")
        monkeypatch.setattr("clamplib.app.previews.RETRY", 0)
        assert (await previews.get(shutil.copy, tmp_path / "a", "d")).exists()
        previews.end()
        return made.read_text(), again.read_text()

    (tmp_path / "a").write_text("text")
    assert asyncio.run(both()) == ("text", "text")


def test_the_most_recently_used_previews_are_kept(tmp_path, monkeypatch):
    async def get(*names):
        previews = Previews(tmp_path / "previews")
        for name in names:
            await previews.get(shutil.copy, tmp_path / "a", name)
        previews.end()

    (tmp_path / "a").write_bytes(bytes(40))
    monkeypatch.setattr("clamplib.app.previews.MOST_BYTES", 100)
    asyncio.run(get("b", "c", "b", "d"))
    assert {path.name.split("-")[1] for path in (tmp_path / "previews").iterdir()} == {"b", "d"}


def sleep(source, target):
    threading.Event().wait()


def test_a_slow_preview_is_stopped_and_others_do_not_wait(tmp_path):
    async def get():
        previews = Previews(tmp_path, Limits(8))
        slow = asyncio.create_task(previews.get(sleep, tmp_path / "a", "b"))
        slow_too = asyncio.create_task(previews.get(sleep, tmp_path / "a", "b"))  # made once for both
        await asyncio.sleep(0)
        assert (await previews.get(shutil.copy, tmp_path / "a", "c")).exists() and not slow.done()
        for waiting in (slow, slow_too):
            with pytest.raises(InputError, match="reading it took more than 8 seconds"):
                await waiting

    (tmp_path / "a").write_text("text")
    asyncio.run(get())
    assert {path.name.split("-")[-1] for path in tmp_path.iterdir()} == {"a", "c"}  # nothing unfinished is left


def test_a_preview_that_is_being_made_ends_with_the_server(tmp_path):
    async def get():
        previews = Previews(tmp_path, Limits(600))
        slow = asyncio.create_task(previews.get(sleep, tmp_path / "a", "b"))
        await asyncio.sleep(1)
        previews.end()
        with pytest.raises(InputError, match="the server is being stopped"):
            await asyncio.wait_for(slow, 60)

    (tmp_path / "a").write_text("text")
    asyncio.run(get())


def test_a_preview_goes_on_for_others_when_one_leaves(tmp_path):
    def copy(source, target):
        time.sleep(1)
        shutil.copy(source, target)

    async def get():
        previews = Previews(tmp_path)
        first, second = (asyncio.create_task(previews.get(copy, tmp_path / "a", "b")) for _ in range(2))
        await asyncio.sleep(0.1)
        first.cancel()
        assert (await second).exists()

    (tmp_path / "a").write_text("text")
    asyncio.run(get())


def test_titles_are_read_once_and_again_after_a_change(tmp_path, monkeypatch):
    def no_jobs(*args, **options):
        raise AssertionError("it is known")

    async def read():
        titles = Titles()
        path = tmp_path / "a.abc"
        path.write_text("X:1\nT:First\nK:C\nCDEF|\n")
        await titles.read([path, tmp_path / "gone.abc"])
        assert titles.knows(path) and titles.get(path) == "First"
        with monkeypatch.context() as patch:
            patch.setattr("clamplib.app.previews.run_jobs", no_jobs)
            await titles.read([path])
        path.write_text("X:1\nT:Second\nK:C\nCDEF|\n")
        os.utime(path, (2**33, 2**33))
        assert not titles.knows(path)
        await titles.read([path])
        assert titles.get(path) == "Second"

    asyncio.run(read())


def test_a_title_that_takes_long_holds_up_no_answer(tmp_path, monkeypatch):
    """Python's regular expressions hold its lock: these lines would stop the whole server for minutes."""
    hostile = tmp_path / "a.mei"
    hostile.write_text("<title " * 300_000)
    monkeypatch.setattr("clamplib.app.previews.TITLE_SECONDS", 1)
    monkeypatch.setattr("clamplib.app.previews.TITLE_PATIENCE", 0.1)

    async def read():
        titles = Titles()
        await titles.read([hostile])
        assert not titles.knows(hostile)
        while not titles.knows(hostile):  # it goes on
            await asyncio.sleep(0.1)
        assert titles.get(hostile) is None

    asyncio.run(asyncio.wait_for(read(), 60))
