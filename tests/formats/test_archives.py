"""Compressed scores: bounds that hold whatever an archive says of itself, and archives that are broken."""

import io
import struct
import warnings
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import music21
import pytest

from clamplib.files import InputError
from clamplib.formats import archives
from clamplib.formats.archives import inflate_noteworthy, unzip, unzip_capella
from clamplib.formats.score_files import score_to_abc

MUSIC21 = Path(music21.__file__).parent
XML = "<score-partwise/>"


def zipped(members: list[tuple[str, str]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, text in members:
            archive.writestr(name, text)
    return buffer.getvalue()


def lying(data: bytes, size: int = 1000) -> bytes:
    """The archive with another unpacked size for each member, in its directory and in front of the member."""
    lie = bytearray(data)
    for mark, offset in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        start = lie.find(mark)
        while start >= 0:
            lie[start + offset : start + offset + 4] = struct.pack("<I", size)
            start = lie.find(mark, start + 4)
    return bytes(lie)


def test_a_directory_that_lies_is_not_believed(monkeypatch):
    taken = []
    read = zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda file, n=-1: taken.append(n) or read(file, n))
    bomb = lying(zipped([("a.xml", " " * 2**24)]))
    with pytest.raises(InputError, match="expected a whole .mxl archive, got a cut or broken one .Bad CRC-32"):
        unzip(bomb, "a.mxl")
    assert taken
    assert all(0 < size <= archives.CHUNK for size in taken)


@pytest.mark.parametrize("unpack", [unzip, unzip_capella])
def test_what_is_unpacked_is_bounded(monkeypatch, unpack):
    monkeypatch.setattr(archives, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match=r"a: expected at most 1000 bytes when unpacked, got more"):
        unpack(zipped([("score.xml", XML + " " * 2000)]), "a")


def test_noteworthy_is_bounded(monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match=r"a\.nwc: expected at most 1000 bytes when unpacked, got more"):
        inflate_noteworthy(b"[NWZ]\0" + zlib.compress(bytes(2**20)), "a.nwc")
    assert inflate_noteworthy(b"[NWZ]\0" + zlib.compress(bytes(1000)), "a.nwc") == bytes(1000)


def test_the_container_is_bounded():
    container = "<c>" + "<r full-path='a.xml'/>" * 100_000 + "</c>"
    with pytest.raises(InputError, match="expected at most 1048576 bytes when unpacked"):
        unzip(zipped([("META-INF/container.xml", container), ("a.xml", XML)]), "a.mxl")


def test_members_are_counted():
    members = [(f"{number}.txt", "") for number in range(10_001)]
    with pytest.raises(InputError, match="expected at most 10000 members in the archive, got 10001"):
        unzip(zipped(members), "a.mxl")


def test_encrypted_and_oddly_packed_members_are_named():
    data = bytearray(zipped([("a.xml", XML)]))
    data[data.find(b"PK\1\2") + 8] |= 1
    with pytest.raises(InputError, match="without a password, got 'a.xml' encrypted"):
        unzip(bytes(data), "a.mxl")
    with pytest.raises(InputError, match="packed with deflate, got another method"):
        unzip(zipped([("a.xml", XML)], zipfile.ZIP_LZMA), "a.mxl")


def test_odd_members_do_no_harm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert unzip(zipped([("/etc/a.xml", XML), ("../../b.xml", "no")]), "a.mxl") == XML.encode()
    assert unzip(zipped([("a.xml", "no"), ("a.xml", XML)]), "a.mxl") == XML.encode()
    with pytest.raises(InputError, match=r"expected a MusicXML file in the archive, got \['a.mxl'\]"):
        unzip(zipped([("a.mxl", "PK")]), "b.mxl")
    assert not list(tmp_path.iterdir())


def test_a_container_that_is_not_well_formed_is_passed_over():
    """Many scores of OpenEWLD have one: its program writes a title with an apostrophe as it is."""
    name = "Didn't My Lord.xml"
    container = f"<container><rootfiles><rootfile full-path='{name}'/></rootfiles></container>"
    assert unzip(zipped([("META-INF/container.xml", container), (name, XML)]), "a.mxl") == XML.encode()


def test_archives_cut_anywhere_are_named():
    whole = zipped([("META-INF/container.xml", "<c><r full-path='score.xml'/></c>"), ("score.xml", XML)])
    for unpack in (unzip, unzip_capella):
        for length in range(2, len(whole)):
            with pytest.raises(InputError, match=r"a: expected a whole \.\w+ archive, got a cut or broken one"):
                unpack(whole[:length], "a")
            with suppress(InputError):  # zipfile passes over bytes in front of an archive
                unpack(whole[:2] + whole[length:], "a")


def test_capella_is_read_and_its_entities_are_refused(tmp_path):
    path = tmp_path / "a.capx"
    original = (MUSIC21 / "capella/Nu_rue_mit_sorgen.capx").read_bytes()
    path.write_bytes(original)
    assert "V:1" in score_to_abc(path)
    score, plain = unzip_capella(original, "a.capx")
    assert unzip_capella(plain, "a.capx")[0] == score
    path.write_bytes(zipped([("score.xml", "<!DOCTYPE x [<!ENTITY a 'b'>]><score/>")]))
    with pytest.raises(InputError, match="declares entities"):
        score_to_abc(path)
    path.write_bytes(zipped([("other.xml", XML)]))
    with pytest.raises(InputError, match=r"expected score\.xml in the archive, got none"):
        score_to_abc(path)


def test_a_cut_noteworthy_file_is_named(tmp_path):
    data = (MUSIC21 / "noteworthy/cuthbert_test1.nwc").read_bytes()
    path = tmp_path / "a.nwc"
    path.write_bytes(data[:-20])
    with pytest.raises(InputError, match=r"a\.nwc: expected a whole \.nwc file, got one that is cut short"):
        score_to_abc(path)
    path.write_bytes(data[:60] + b"????" + data[64:])
    with pytest.raises(InputError, match=r"a\.nwc: expected a valid \.nwc file, got a broken one"):
        score_to_abc(path)
