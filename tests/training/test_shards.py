import gzip
import io
import multiprocessing
import tarfile

import pytest

from clamplib.files import InputError
from clamplib.training import shards
from clamplib.training.shards import Finder, members


def write_tar(path, contents, format=tarfile.GNU_FORMAT, mode="w"):
    with tarfile.open(path, mode, format=format) as tar:
        for name, data in contents.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            if name.endswith("/"):
                header.type = tarfile.DIRTYPE
            tar.addfile(header, io.BytesIO(data))
    return path


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_files_by_path(tmp_path, format):
    long = "l" * 60 + "/" + "m" * 70 + ".abc"
    names = ["./a b.abc", "./sub/ü 曲\n;$(x).mtf", long, "empty.abc", "-.npy"]
    contents = {"sub/": b"", **{name: name.encode() * 90 for name in names}, "empty.abc": b""}
    shard = write_tar(tmp_path / "s.tar", contents, format)
    find, found = Finder().find, members(shard)
    assert set(found) == {name.removeprefix("./") for name in names}
    for name, file in found.items():
        expected = contents[name if name in contents else f"./{name}"]
        assert find(tmp_path / "s.tar" / name) == file
        assert str(file.path) == f"{shard}/{name}"
        assert file.read() == expected
        assert file.read(10) == expected[:10]
        assert file.size == len(expected)
    for nowhere in ("gone.abc", "sub", "../s.tar", "a b.abc/x", "\0", "\ud800"):
        assert find(shard / nowhere) is None


def test_the_later_of_two_members_counts(tmp_path):
    shard = write_tar(tmp_path / "s.tar", {"a.abc": b"old", "b.abc": b"b"})
    write_tar(shard, {"a.abc": b"new"}, mode="a")
    assert [file.read() for file in members(shard).values()] == [b"new", b"b"]


def test_files_of_their_own(tmp_path):
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "folder.tar/a.abc").write_bytes(b"unpacked")
    write_tar(tmp_path / "folder.tar/s.tar", {"x.tar/a.abc": b"packed"})
    find = Finder().find
    assert find(tmp_path / "folder.tar/a.abc").read() == b"unpacked"
    assert find(tmp_path / "folder.tar/a.abc").read(2) == b"un"
    assert find(tmp_path / "folder.tar/s.tar/x.tar/a.abc").read() == b"packed"
    assert find(tmp_path / "folder.tar") is None
    assert find(tmp_path / "gone.tar/a.abc") is None


def broken_tars():
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name in ("a.abc", "b.abc", "c.abc"):
            header = tarfile.TarInfo(name)
            header.size = 700
            tar.addfile(header, io.BytesIO(b"x" * 700))
    whole = whole.getvalue()
    return {
        "compressed": gzip.compress(whole),
        "cut in a member": whole[:2300],
        "cut in a header": whole[:1600],
        "cut between": whole[:1536],
        "broken header": whole[:1536] + b"x" * 512 + whole[2048:],
        "empty": b"",
        "text": b"no tar at all\n" * 90,
    }


@pytest.mark.parametrize("kind", broken_tars())
def test_broken_shards(tmp_path, kind):
    (tmp_path / "s.tar").write_bytes(broken_tars()[kind])
    with pytest.raises(InputError, match="s.tar: expected an uncompressed tar"):
        members(tmp_path / "s.tar")
    find = Finder().find
    for _ in range(2):
        with pytest.raises(InputError, match="s.tar: expected an uncompressed tar"):
            find(tmp_path / "s.tar/a.abc")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_are_not_files(tmp_path, kind):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        header = tarfile.TarInfo("a.abc")
        header.type, header.linkname = kind, "/etc/passwd"
        tar.addfile(header)
    with pytest.raises(InputError, match="s.tar: .*a.abc is a link"):
        members(tmp_path / "s.tar")


def test_a_shard_cut_after_it_was_listed(tmp_path):
    shard = write_tar(tmp_path / "s.tar", {"a.abc": b"a" * 900})
    file = members(shard)["a.abc"]
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(InputError, match="s.tar/a.abc: expected 900 bytes in the shard, got 488"):
        file.read()


def test_what_cannot_be_read_is_named(tmp_path):
    shard = write_tar(tmp_path / "s.tar", {"a.abc": b"a"})
    (tmp_path / "b.abc").write_text("b")
    packed, alone = members(shard)["a.abc"], Finder().find(tmp_path / "b.abc")
    shard.unlink()
    (tmp_path / "b.abc").unlink()
    for file, name in ((packed, "s.tar/a.abc"), (alone, "b.abc")):
        with pytest.raises(InputError, match=f"{name}: No such file or directory"):
            file.read()


def read_all(files):
    return [file.read() for file in files]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_read_at_once(tmp_path, start):
    """Also from shards that were open before the processes began."""
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} here")
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", {f"{k}.abc": b"%d %d" % (number, k) * 999 for k in range(40)})
    files = [file for number in range(3) for file in members(tmp_path / f"{number}.tar").values()]
    expected = read_all(files)
    assert len(set(expected)) == 120
    with multiprocessing.get_context(start).Pool(2) as pool:
        assert pool.map(read_all, [files, files[::-1]] * 4) == [expected, expected[::-1]] * 4


def test_few_shards_are_open_at_once(tmp_path, monkeypatch):
    is_open = {}  # descriptor -> path
    open_file, close_file = shards.os.open, shards.os.close

    def open_and_note(path, flags):
        descriptor = open_file(path, flags)
        is_open[descriptor] = path
        return descriptor

    def close_and_note(descriptor):
        close_file(descriptor)
        del is_open[descriptor]

    monkeypatch.setattr(shards.os, "open", open_and_note)
    monkeypatch.setattr(shards.os, "close", close_and_note)
    count = shards.OPEN_SHARDS + 5
    for number in range(count):
        write_tar(tmp_path / f"{number}.tar", {"a": b"%d" % number})
    files = [members(tmp_path / f"{number}.tar")["a"] for number in range(count)]
    is_open.clear()
    for number, file in enumerate(files):
        assert file.read() == b"%d" % number
        assert len(is_open) <= shards.OPEN_SHARDS + 1
    assert set(is_open.values()) == {tmp_path / f"{number}.tar" for number in range(5, count)}
