"""The embedding space of a folder of features, in its `space.json`.

Its fields: variant, weights_sha256, geometry, library (the version that wrote it) and kind, which is
"clamp3 global", "clamp3 temporal", "m3", "mert" or "mert mean". Features of two spaces have no common meaning: they
neither share a folder nor are compared. A folder without the file is taken as it is.
"""

import json
from pathlib import Path

from clamplib.files import InputError, atomic_path

SPACE_FILE = "space.json"
IDENTITY = ("weights_sha256", "kind")  # what makes two spaces one; the other fields only inform


def read_space(path: str | Path) -> dict | None:
    """The space of a feature file or folder: the nearest space.json in it or above it, and those below it.

    None where there is none. InputError where two differ.
    """
    path = Path(path).resolve()
    above = next((folder / SPACE_FILE for folder in (path, *path.parents) if (folder / SPACE_FILE).is_file()), None)
    below = sorted(path.rglob(SPACE_FILE)) if path.is_dir() else []
    found = [(file.parent, _load(file)) for file in dict.fromkeys([above, *below]) if file]
    for folder, space in found[1:]:
        check_same_space(*found[0], folder, space)
    return found[0][1] if found else None


def write_space(folder: str | Path, space: dict) -> None:
    """Writes `folder`/space.json, whole or not at all."""
    with atomic_path(Path(folder) / SPACE_FILE) as temporary:
        temporary.write_text(json.dumps(space, indent=1) + "\n", encoding="utf-8")


def check_same_space(name_a: str | Path, a: dict | None, name_b: str | Path, b: dict | None) -> None:
    """InputError when both spaces are known and differ."""
    differing = [field for field in IDENTITY if a and b and a.get(field) != b.get(field)]
    if differing:
        raise InputError(
            f"{name_a} ({_describe(a)}) and {name_b} ({_describe(b)}) are two embedding spaces: "
            f"{', '.join(differing)} differ. Extract both with the same variant and kind of feature, "
            "each into a folder of its own."
        )


def _load(file: Path) -> dict:
    try:
        space = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: expected the JSON that extraction writes, could not read it ({error})") from error
    if not isinstance(space, dict):
        raise InputError(f"{file}: expected a JSON object, got {type(space).__name__}")
    return space


def _describe(space: dict) -> str:
    weights = str(space.get("weights_sha256"))[:12]
    return f"{space.get('kind')}, variant {space.get('variant')}, weights {weights}"
