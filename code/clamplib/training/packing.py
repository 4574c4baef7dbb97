"""Packs the files of a JSONL's pieces into shards (see shards), with a JSONL beside them that trains exactly alike.

Shards are filled in the order of the lines; the files of a piece lie in one shard, one after another, so that
WebDataset finds them together. A member has the path that its line names, without what would lead out of a
folder. The new JSONL has the lines of the old one, and an empty line in place of one that is no piece, because
pieces without an id go by the number of their line.
"""

import json
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePath

from tqdm import tqdm

from clamplib.files import InputError, Report, atomic_path, is_done, show
from clamplib.training import shards
from clamplib.training.pieces import SUFFIXES, find_file, parse_line

MUSIC = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)


def pack(jsonl: str | Path, output: str | Path, shard_size: int) -> Report:
    """Writes shard-00000.tar, … of about `shard_size` bytes, and a JSONL of the same name, into the folder `output`.

    Lines and files that cannot be packed are left out and reported. Shards that an earlier run has finished stay.
    InputError where there is nothing to pack, or a shard of other data in the way.
    """
    jsonl, output, report = Path(jsonl), Path(output), Report()
    if output.resolve() == jsonl.parent.resolve():
        raise InputError(f"{show(output)}: expected a folder other than the JSONL's own")
    plan = _plan(jsonl, shard_size, report)
    if not plan:
        raise InputError(f"{show(jsonl)}: expected pieces with {' '.join(MUSIC)} files, got none")
    places: dict[Path, str] = {}  # of a file, in the output folder
    size = sum(file.size for members in plan for file in members.values())
    with tqdm(total=size, desc="packing", unit="B", unit_scale=True) as progress:
        for number, members in enumerate(plan):
            shard = output / f"shard-{number:05}{shards.SUFFIX}"
            packed = _pack_shard(shard, members, report, progress)
            places |= {members[name].path: f"{shard.name}/{name}" for name in packed}
    with atomic_path(output / jsonl.name) as temporary, open(temporary, "wb") as lines:
        lines.writelines(_placed_lines(jsonl, places))
    report.write(output)
    return report


def _plan(jsonl: Path, shard_size: int, report: Report) -> list[dict[str, shards.File]]:
    """The files of each shard by their names in it; every file once."""
    plan, room, seen, taken, finder = [], 0, set(), set(), shards.Finder()
    for number, line in _lines(jsonl):
        try:
            names = _music_names(line)
        except InputError as error:
            report.add_failure(f"{jsonl}, line {number}", error)
            continue
        piece = {}
        for name in names:
            path = jsonl.parent / name
            if path not in seen:
                seen.add(path)
                try:
                    piece[_member_name(name, taken)] = find_file(path, finder)
                except InputError as error:
                    report.add_failure(path, error)
        size = sum(file.size for file in piece.values())
        if piece and (not plan or size > room):
            plan.append({})
            room = shard_size
        if piece:
            plan[-1].update(piece)
            room -= size
    return plan


def _lines(jsonl: Path) -> Iterator[tuple[int, bytes]]:
    with open(jsonl, "rb") as lines:
        yield from ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _music_names(line: bytes) -> list[str]:
    _, names = parse_line(line)
    music = [name for name in names if Path(name).suffix.lower() in MUSIC]
    if not music:
        raise InputError(f"expected {' '.join(MUSIC)} files in filepaths, got {names}")
    return music


def _member_name(name: str, taken: set[str]) -> str:
    """A path that leads into no other folder, and that no other member has; it is `taken` from now on."""
    path = PurePath(name)
    safe = "/".join(part for part in path.parts if part not in (path.anchor, ".."))
    while safe in taken:
        safe = f"{len(taken)}/{safe}"
    taken.add(safe)
    return safe


def _pack_shard(shard: Path, members: dict[str, shards.File], report: Report, progress: tqdm) -> list[str]:
    """Writes a shard, unless an earlier run did; returns the names of its members."""
    if shard.exists():
        _check_done(shard, members)
        report.skipped += len(members)
        progress.update(sum(file.size for file in members.values()))
        return list(members)
    packed = []
    with atomic_path(shard) as temporary, tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, file in members.items():
            progress.update(file.size)
            try:
                data = file.read()
            except (OSError, InputError) as error:
                report.add_failure(file.path, error)
                continue
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, BytesIO(data))
            packed.append(name)
    report.done += len(packed)
    return packed


def _check_done(shard: Path, members: dict[str, shards.File]) -> None:
    """InputError unless the shard holds these members, and is not older than they are."""
    found = {name: file.size for name, file in shards.members(shard).items()}
    expected = {name: file.size for name, file in members.items()}
    if found != expected or not all(is_done(file.shard or file.path, shard) for file in members.values()):
        raise InputError(
            f"{show(shard)}: expected none, or one of these very files from an earlier run, got another: "
            "pack into a new folder, or remove it"
        )


def _placed_lines(jsonl: Path, places: dict[Path, str]) -> Iterator[bytes]:
    """The lines of the new JSONL."""
    before = 0
    for number, line in _lines(jsonl):
        yield b"\n" * (number - before - 1)
        before = number
        try:
            fields, names = parse_line(line)
        except InputError:  # reported by the plan
            fields, names = {}, []
        paths = [jsonl.parent / name for name in names]
        fields["filepaths"] = [places[path] for path in paths if path in places]
        yield (json.dumps(fields) if fields["filepaths"] else "").encode() + b"\n"
