"""Packs the files of a JSONL's pieces into shards (see shards), beside a JSONL that gives exactly the same training.

Shards are filled in the order of the lines. The files of a piece lie in one shard, one after another, so that
WebDataset finds them together. The name of a member is the path in its line, without the parts that would lead out of
a folder. The new JSONL has one line for each line of the old one; a line that is not a piece becomes an empty line,
because a piece without an id is named by the number of its line.
"""

import json
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePath

from tqdm import tqdm

from clamplib.files import InputError, atomic_path, not_older, show
from clamplib.jobs import Report
from clamplib.training import shards
from clamplib.training.pieces import AUDIO_SUFFIXES, SYMBOLIC_SUFFIXES, find_file, numbered_lines, parse_line

MUSIC_SUFFIXES = SYMBOLIC_SUFFIXES + AUDIO_SUFFIXES


def pack(jsonl: str | Path, output: str | Path, shard_size: int) -> Report:
    """Packs the files of a JSONL's pieces into shard-00000.tar and so on, and writes a JSONL of the same name.

    Lines and files that cannot be packed are left out and reported. Shards that an earlier run finished are kept.

    Args:
        jsonl: one piece per line; file paths are relative to its folder.
        output: a new folder, or the folder of an earlier run; not the JSONL's own.
        shard_size: in bytes. A shard ends before the piece that would exceed it.

    Returns:
        The counts of files, and what failed; failures.jsonl in the output folder says the same.

    Raises:
        InputError: there is nothing to pack, or a shard of other data is in the way.
        OSError: the JSONL cannot be read, or the folder cannot be written.
    """
    jsonl, output, report = Path(jsonl), Path(output), Report()
    if output.resolve() == jsonl.parent.resolve():
        raise InputError(f"{show(output)}: expected a folder other than the JSONL's own")
    plan = _plan(jsonl, shard_size, report)
    if not plan:
        raise InputError(f"{show(jsonl)}: expected pieces with {' '.join(MUSIC_SUFFIXES)} files, got none")
    places: dict[Path, str] = {}  # of a file, relative to the output folder
    size = sum(_size(members) for members in plan)
    with tqdm(total=size, desc="packing", unit="B", unit_scale=True) as progress:
        for number, members in enumerate(plan):
            shard = output / f"shard-{number:05}{shards.SUFFIX}"
            for name in _pack_shard(shard, members, report, progress):
                places[members[name].path] = f"{shard.name}/{name}"
    with atomic_path(output / jsonl.name) as temporary, open(temporary, "wb") as lines:
        lines.writelines(_placed_lines(jsonl, places))
    report.write(output)
    return report


def _plan(jsonl: Path, shard_size: int, report: Report) -> list[dict[str, shards.File]]:
    """The members of each shard by their names, every file once; what cannot be packed goes into the report."""
    plan: list[dict[str, shards.File]] = []
    room = 0  # bytes left in the last shard
    seen: set[Path] = set()
    taken: set[str] = set()  # names of members
    finder = shards.Finder()
    for number, line in numbered_lines(jsonl):
        members = {}  # of this piece
        try:
            names = _music_names(line)
        except InputError as error:
            report.add_failure(f"{show(jsonl)}, line {number}", error, "read")
            continue
        for name in names:
            path = jsonl.parent / name
            if path in seen:
                continue
            seen.add(path)
            try:
                members[_member_name(name, taken)] = find_file(path, finder)
            except InputError as error:
                report.add_failure(path, error, "read")
        if not members:
            continue
        size = _size(members)
        if not plan or size > room:
            plan.append({})
            room = shard_size
        plan[-1].update(members)
        room -= size
    return plan


def _size(members: dict[str, shards.File]) -> int:
    return sum(file.size for file in members.values())


def _music_names(line: bytes) -> list[str]:
    _, names = parse_line(line)
    music = [name for name in names if Path(name).suffix.lower() in MUSIC_SUFFIXES]
    if not music:
        raise InputError(f"expected {' '.join(MUSIC_SUFFIXES)} files in filepaths, got {names}")
    return music


def _member_name(name: str, taken: set[str]) -> str:
    """A name that stays below the shard's folder and that no other member has; it is `taken` from now on."""
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
        progress.update(_size(members))
        return list(members)
    packed = []
    with atomic_path(shard) as temporary, tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, file in members.items():
            progress.update(file.size)
            try:
                data = file.read()
            except InputError as error:
                report.add_failure(file.path, error, "read")
                continue
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, BytesIO(data))
            packed.append(name)
    report.done += len(packed)
    return packed


def _check_done(shard: Path, members: dict[str, shards.File]) -> None:
    """Checks that the shard holds these members, and that none of them has changed since."""
    found = {name: file.size for name, file in shards.members(shard).items()}
    expected = {name: file.size for name, file in members.items()}
    if found != expected or not all(not_older(shard, file.shard or file.path) for file in members.values()):
        raise InputError(
            f"{show(shard)}: expected no file, or a shard of the same files from an earlier run, got another: "
            "pack into a new folder, or remove it"
        )


def _placed_lines(jsonl: Path, places: dict[Path, str]) -> Iterator[bytes]:
    """The lines of the new JSONL."""
    before = 0
    for number, line in numbered_lines(jsonl):
        yield b"\n" * (number - before - 1)
        before = number
        try:
            fields, names = parse_line(line)
        except InputError:  # the plan has reported it
            yield b"\n"
            continue
        paths = [jsonl.parent / name for name in names]
        fields["filepaths"] = [places[path] for path in paths if path in places]
        if fields["filepaths"]:
            yield json.dumps(fields).encode()
        yield b"\n"
