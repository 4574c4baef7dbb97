"""The embedding space of a folder of features, in its `space.json`.

| field | says |
| --- | --- |
| weights_sha256 | which weights made the features |
| kind | "clamp3 global", "clamp3 temporal", "m3", "mert", "mert mean" or "spectral" |
| abc | how ABC was read that is not interleaved: "as found" or "converted" |
| notes | "canonical" where the model reads symbolic music in that form (see `formats.canonical`) |
| front | what heard the recordings: "spectral", or "mert-" and the hash of MERT's weights; only where there are any |
| precision | in what the model computed: "bfloat16", "float16" or "int8"; not there for float32 |
| variant, geometry, library | for people |

Features of two spaces are not comparable: they do not share a folder and are never compared. A field that only one of
two spaces has does not tell them apart, nor does the precision, and a folder without the file is taken as it is.
"""

from pathlib import Path

from clamplib.files import InputError, read_object, show, write_json

SPACE_FILE = "space.json"
IDENTITY = ("weights_sha256", "kind")  # what makes two spaces one
READING = ("abc", "front")  # where both have them


def read_space(path: str | Path) -> dict | None:
    """The space of a feature file or folder: the nearest space.json in it or above it, and those below it.

    None where there is none. InputError where two differ.
    """
    path = Path(path).resolve()
    above = next((folder / SPACE_FILE for folder in (path, *path.parents) if (folder / SPACE_FILE).is_file()), None)
    below = sorted(filter(Path.is_file, path.rglob(SPACE_FILE))) if path.is_dir() else []
    found = [(file.parent, _load(file)) for file in dict.fromkeys([above, *below]) if file]
    for folder, space in found[1:]:
        check_same_space(*found[0], folder, space)
    return found[0][1] if found else None


def write_space(folder: str | Path, space: dict) -> None:
    """Writes `folder`/space.json, whole or not at all."""
    write_json(Path(folder) / SPACE_FILE, space)


def front_of(space: dict | None) -> dict:
    """The field `front` of vectors that are made from features of this space; {} where these are not of audio."""
    kind = (space or {}).get("kind", "")
    if kind.startswith("mert") and "weights_sha256" in space:
        return {"front": f"mert-{space['weights_sha256'][:16]}"}
    return {"front": kind} if kind == "spectral" else {}


def check_same_space(name_a: str | Path, a: dict | None, name_b: str | Path, b: dict | None) -> None:
    """InputError when both spaces are known and differ."""
    if not a or not b:
        return
    differing = [field for field in IDENTITY if a.get(field) != b.get(field)]
    differing += [field for field in READING if field in a and field in b and a[field] != b[field]]
    if differing:
        raise InputError(
            f"{name_a} ({_describe(a)}) and {name_b} ({_describe(b)}) are two embedding spaces: "
            f"{', '.join(differing)} differ. Extract both with the same variant and kind of feature, "
            "each into a folder of its own."
        )


def _load(file: Path) -> dict:
    space = read_object(file, "an embedding space")
    for field in (*IDENTITY, *READING):
        if not isinstance(space.get(field, ""), str):
            raise InputError(f"{show(file)}: expected a text as {field}, got {type(space[field]).__name__}")
    return space


def _describe(space: dict) -> str:
    weights = str(space.get("weights_sha256"))[:12]
    return show(f"{space.get('kind')}, variant {space.get('variant')}, weights {weights}")
