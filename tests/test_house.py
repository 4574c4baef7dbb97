"""The rooms of the library, and who may import whom: the table of CONTRIBUTING.md."""

import ast
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "code/clamplib"
GROUND = {"files", "database", "manifest", "processes", "jobs", "space", "command"}
MAY_IMPORT = {
    "files": set(),
    "database": {"files"},
    "manifest": {"files", "database"},
    "processes": {"files"},
    "jobs": {"files", "database", "manifest", "processes"},
    "space": {"files"},
    "command": {"files", "database", "manifest", "processes", "jobs"},
    "formats": GROUND,
    "models": GROUND | {"formats"},
    "audio": GROUND | {"models"},
    "retrieval": GROUND,
    "embedding": GROUND | {"formats", "audio", "models", "retrieval"},
    "evaluation": GROUND | {"retrieval", "models"},
    "training": GROUND | {"formats", "models", "embedding.sequences", "evaluation.metrics"},
    "app": GROUND | {"formats", "audio", "models", "embedding", "retrieval", "evaluation", "training"},
    "__main__": {"app"},
}
MODULES = sorted(path for path in LIBRARY.rglob("*.py") if path != LIBRARY / "__init__.py")


def imported(path: Path) -> set[str]:
    """The modules of the library that a file imports anywhere, such as "files" or "formats.mtf"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "clamplib":
            inside = node.module.split(".")[1:]
            found |= {".".join([*inside, name.name]) for name in node.names} if len(inside) < 2 else {".".join(inside)}
        elif isinstance(node, ast.Import):
            found |= {name.name.removeprefix("clamplib.") for name in node.names if name.name.startswith("clamplib.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(LIBRARY).as_posix())
def test_a_module_imports_what_its_room_may(path):
    place = path.relative_to(LIBRARY)
    room = place.parts[0].removesuffix(".py")
    allowed = MAY_IMPORT[room] | {room}
    for module in imported(path):
        assert module in allowed or module.split(".")[0] in allowed, f"{place} imports {module}"


def test_every_room_is_in_the_table():
    rooms = {path.relative_to(LIBRARY).parts[0].removesuffix(".py") for path in MODULES}
    assert rooms == set(MAY_IMPORT)
