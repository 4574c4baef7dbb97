"""Labels of features: from their file names, or from a table.

A name's label is what stands before its first `_`: `jig_042.npy` is a jig. Without a `_` it is the name up to
its first dot. A table is needed where labels hold a `_` themselves (`hip_hop`), or names say nothing; it is a
.csv, .tsv or .jsonl with two columns or keys, all others being ignored:

    path   the feature file, below the folder that is read, or as it would be opened from here
    key    in place of `path`: the folder below that folder and the name up to its first dot
    label
"""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clamplib.files import InputError, atomic_path, show

FROM_NAMES = "names"  # in place of a table
DELIMITERS = {".csv": ",", ".tsv": "\t"}
MOST = 0.75


@dataclass(frozen=True)
class LabelTable:
    """Labels by path or by key."""

    file: Path
    column: str  # "path" or "key"
    labels: dict[str, str]


def label_in_name(path: str | Path) -> str:
    """What stands before the first `_` of a file's name, or, without one, before its first dot."""
    name = Path(path).name
    return name.partition("_")[0] if "_" in name else name.partition(".")[0]


def read_table(file: str | Path) -> LabelTable:
    """A table of labels. Rows without a label are passed over.

    InputError names the line of what is not as the head of this module says, or labels something twice.
    """
    file = Path(file)
    labels: dict[str, str] = {}
    columns = set()
    for place, row in _rows(file):
        column = next((name for name in ("path", "key") if name in row), None)
        if column is None or "label" not in row:
            raise InputError(f"{place}: expected `path` or `key`, and `label`; got {', '.join(map(repr, row))}")
        columns.add(column)
        name, label = (str(row[field] if row[field] is not None else "").strip() for field in (column, "label"))
        if not name or not label:
            continue
        name = Path(name).as_posix()
        if labels.setdefault(name, label) != label:
            raise InputError(f"{place}: {name!r} is labeled {label!r} here and {labels[name]!r} before")
    if len(columns) > 1:
        raise InputError(f"{show(file)}: expected `path` in all rows or `key` in all rows, got both")
    if not labels:
        raise InputError(f"{show(file)}: expected a table of labels, found none in it")
    return LabelTable(file, columns.pop(), labels)


def _rows(file: Path) -> Iterator[tuple[str, dict]]:
    """(file and line for a message, the row) of a table."""
    suffix = file.suffix.lower()
    if suffix not in (*DELIMITERS, ".jsonl"):
        raise InputError(f"{show(file)}: expected a table of labels, .csv, .tsv or .jsonl")
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            if suffix == ".jsonl":
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        place = f"{show(file)}, line {number}"
                        yield place, _json_object(line, place)
            else:
                reader = csv.DictReader(lines, delimiter=DELIMITERS[suffix])
                for row in reader:
                    yield f"{show(file)}, line {reader.line_num}", row
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{show(file)}: expected a table in UTF-8 ({error})") from error


def _json_object(line: str, place: str) -> dict:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place}: expected a JSON object ({error})") from error
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected a JSON object, got {type(row).__name__}")
    return row


def feature_labels(
    paths: Sequence[Path], keys: Sequence[str], folder: str | Path, source: str | Path = FROM_NAMES
) -> list[str | None]:
    """The label of each file of a folder by its path or its key (see `retrieval`), None where there is none.

    source: "names", or the file of a table. InputError where nothing has a label.
    """
    if source == FROM_NAMES:
        labels = [label_in_name(path) or None for path in paths]
    else:
        table = read_table(source)
        names = [[key] for key in keys] if table.column == "key" else [_table_names(path, folder) for path in paths]
        labels = [next((table.labels[name] for name in own if name in table.labels), None) for own in names]
        if not any(labels):
            raise InputError(
                f"{show(table.file)}: expected labels of what is in {show(folder)}, such as {table.column} "
                f"{names[0][0]!r}; its {len(table.labels)} rows, such as {next(iter(table.labels))!r}, name none of it"
            )
    if not any(labels):
        raise InputError(f"{show(folder)}: expected names that begin with a label and `_`, found none")
    return labels


def _table_names(path: Path, folder: str | Path) -> list[str]:
    """What a table may call a file."""
    below = path.relative_to(folder) if path != Path(folder) else Path(path.name)
    return [below.as_posix(), path.as_posix(), path.resolve().as_posix()]


def merged_labels(paths: Iterable[str | Path]) -> dict[str, list[str]]:
    """Labels that may be several, cut at a `_` of their own: {"hip": ["hip_hop", "hip_house"]}.

    In names such as `hip_hop_07` a word stands between the label and the item's number. It is taken for a part
    of the label if no other label has it (`jig_train_1` and `reel_train_1` say something else than a class) and
    several files share it (unlike words of a title), where two such words or more cover most of the label's files.
    """
    counts: Counter[str] = Counter()
    words: dict[str, Counter[str]] = defaultdict(Counter)
    for path in paths:
        label, *rest = Path(path).name.partition(".")[0].split("_")
        counts[label] += 1
        if len(rest) > 1 and rest[0].isalpha() and any(map(str.isdigit, rest[-1])):
            words[label][rest[0]] += 1
    owners = Counter(word for found in words.values() for word in found)
    merged = {}
    for label, found in words.items():
        parts = {word: count for word, count in found.items() if count > 1 and owners[word] == 1}
        if len(parts) > 1 and sum(parts.values()) >= MOST * counts[label]:
            merged[label] = [f"{label}_{word}" for word in sorted(parts)]
    return merged


def merged_warning(paths: Iterable[str | Path]) -> str | None:
    """What to tell the user of `merged_labels`, if there are any."""
    merged = merged_labels(paths)
    if not merged:
        return None
    named = "; ".join(f"{label!r} for {', '.join(names)}" for label, names in sorted(merged.items()))
    return (
        f"a label is what stands before the first `_` of a name, which may join classes: {named}. "
        "If these are classes of their own, write them into a table and name it with --labels."
    )


def save_labels(path: str | Path, labels: dict[str, object]) -> None:
    """Writes {feature path: label} as JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(labels, indent=1) + "\n", encoding="utf-8")
