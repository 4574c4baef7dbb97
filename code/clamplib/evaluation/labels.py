"""Labels of feature files, from their names or from a table.

The label in a name is the part before its first `_`: `jig_042.npy` is labeled jig. Without a `_` it is the name up to
its first dot. Use a table if labels contain a `_` themselves (`hip_hop`) or if names hold no labels. A table is a .csv,
.tsv or .jsonl file with two of these columns; others are ignored:

    path   the feature file, relative to the folder that is read or to the working directory, or absolute
    key    instead of `path`: the folder below that folder, and the name up to its first dot
    label
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clamplib.files import InputError, excerpt, parse_object, show, write_json

FROM_NAMES = "names"  # given instead of a table
DELIMITERS = {".csv": ",", ".tsv": "\t"}
MERGED_SHARE = 0.75  # of a label's files, from which on it is taken for several labels


@dataclass(frozen=True)
class LabelTable:
    """Labels by path or by key."""

    file: Path
    column: str  # "path" or "key"
    labels: dict[str, str]


def label_in_name(path: str | Path) -> str:
    """Returns the part of a file's name before its first `_`, or before its first dot if there is no `_`."""
    name = Path(path).name
    return name.partition("_")[0] if "_" in name else name.partition(".")[0]


def read_table(file: str | Path) -> LabelTable:
    """Reads a table of labels in the format that the module describes. Rows without a label are skipped.

    Raises:
        InputError: the file is not such a table, or labels something twice differently; the line is named.
    """
    file = Path(file)
    labels: dict[str, str] = {}
    columns = set()
    for place, row in _rows(file):
        column = next((name for name in ("path", "key") if name in row), None)
        if column is None or "label" not in row:
            raise InputError(f"{place}: expected `path` or `key`, and `label`; got {', '.join(map(excerpt, row))}")
        columns.add(column)
        name = _cell(row, column)
        label = _cell(row, "label")
        if not name or not label:
            continue
        name = Path(name).as_posix()
        if labels.setdefault(name, label) != label:
            got = f"{excerpt(label)} here and {excerpt(labels[name])} before"
            raise InputError(f"{place}: expected one label for {excerpt(name)}, got {got}")
    if len(columns) > 1:
        raise InputError(f"{show(file)}: expected `path` in all rows or `key` in all rows, got both")
    if not labels:
        raise InputError(f"{show(file)}: expected a table of labels, found none in it")
    return LabelTable(file, columns.pop(), labels)


def _cell(row: dict, column: str) -> str:
    value = row[column]
    return "" if value is None else str(value).strip()


def _rows(file: Path) -> Iterator[tuple[str, dict]]:
    """Yields, for each row of a table, its file and line for a message, and the row itself."""
    suffix = file.suffix.lower()
    if suffix not in (*DELIMITERS, ".jsonl"):
        raise InputError(f"{show(file)}: expected a table of labels, .csv, .tsv or .jsonl")
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            if suffix == ".jsonl":
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        place = f"{show(file)}, line {number}"
                        yield place, parse_object(line, f"{place}: expected a JSON object")
            else:
                reader = csv.DictReader(lines, delimiter=DELIMITERS[suffix])
                for row in reader:
                    yield f"{show(file)}, line {reader.line_num}", row
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{show(file)}: expected a table in UTF-8 ({error})") from error


def feature_labels(
    paths: Sequence[Path], keys: Sequence[str], folder: str | Path, source: str | Path = FROM_NAMES
) -> list[str | None]:
    """Returns the label of each feature file of a folder, or None for those without one.

    Args:
        paths: the files, N of them.
        keys: their keys, N of them (see `retrieval.similarity`).
        folder: the folder that they were read from.
        source: "names", or the file of a table.

    Raises:
        InputError: no file has a label, or the table cannot be read.
    """
    if source == FROM_NAMES:
        labels = [label_in_name(path) or None for path in paths]
    else:
        table = read_table(source)
        labels = []
        for path, key in zip(paths, keys, strict=True):
            names = [key] if table.column == "key" else _table_names(path, folder)
            labels.append(next((table.labels[name] for name in names if name in table.labels), None))
        if not any(labels):
            example = keys[0] if table.column == "key" else _table_names(paths[0], folder)[0]
            raise InputError(
                f"{show(table.file)}: expected labels of the files in {show(folder)}, such as {table.column} "
                f"{example!r}; its {len(table.labels)} rows, such as {next(iter(table.labels))!r}, name none of them"
            )
    if not any(labels):
        raise InputError(f"{show(folder)}: expected names that begin with a label and `_`, found none")
    return labels


def _table_names(path: Path, folder: str | Path) -> list[str]:
    """Returns the paths by which a table may name a file."""
    below = path.relative_to(folder) if path != Path(folder) else Path(path.name)
    return [below.as_posix(), path.as_posix(), path.resolve().as_posix()]


def merged_labels(paths: Iterable[str | Path]) -> dict[str, list[str]]:
    """Finds labels that may each stand for several, cut at a `_` of their own.

    In a name such as `hip_hop_07` a word stands between label and number. The word is taken for a part of the label if
    it occurs with no other label (`jig_train_1` and `reel_train_1` name a split, not a class) and if several files have
    it (words of a title are rarely shared). A label is reported if two or more such words cover most of its files.

    Returns:
        The labels, and what each may stand for: {"hip": ["hip_hop", "hip_house"]}.
    """
    counts: Counter[str] = Counter()
    words: dict[str, Counter[str]] = defaultdict(Counter)
    for path in paths:
        label, *rest = Path(path).name.partition(".")[0].split("_")
        counts[label] += 1
        if len(rest) > 1 and rest[0].isalpha() and any(map(str.isdigit, rest[-1])):
            words[label][rest[0]] += 1
    owners: Counter[str] = Counter()
    for found in words.values():
        owners.update(found.keys())
    merged = {}
    for label, found in words.items():
        parts = {word: count for word, count in found.items() if count > 1 and owners[word] == 1}
        if len(parts) > 1 and sum(parts.values()) >= MERGED_SHARE * counts[label]:
            merged[label] = [f"{label}_{word}" for word in sorted(parts)]
    return merged


def merged_warning(paths: Iterable[str | Path]) -> str | None:
    """Returns a warning about `merged_labels`, or None if there are none."""
    merged = merged_labels(paths)
    if not merged:
        return None
    named = "; ".join(f"{label!r} for {', '.join(names)}" for label, names in sorted(merged.items()))
    return (
        f"a label is the part of a name before its first `_`, which may join several classes: {named}. "
        "If these are separate classes, list them in a table and pass it with --labels."
    )


def save_labels(path: str | Path, labels: dict[str, object]) -> None:
    """Writes {feature path: label} as JSON, whole or not at all."""
    write_json(path, labels)
