"""docs/licenses.md lists every direct dependency, with the license that its own metadata states.

`python tests/test_licenses.py` writes the table again.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest

if sys.version_info < (3, 11):
    pytest.skip("tomllib came with Python 3.11", allow_module_level=True)
import tomllib

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/licenses.md"
HEAD = "| package | version | license | needed for |\n| --- | --- | --- | --- |\n"
ROW = re.compile(r"(?m)^\| (\S+) \| (\S+) \| (.*?) \| (.*?) \|$")


def direct_dependencies() -> dict[str, list[str]]:
    """The packages that pyproject.toml names, each with the extras that need it, or with "core"."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = {}
    for group, requirements in {"core": project["dependencies"], **project["optional-dependencies"]}.items():
        for requirement in requirements:
            name = re.match(r"[\w.-]+", requirement)[0]
            if name != "clamplib":
                needed.setdefault(name, []).append(group)
    return dict(sorted(needed.items()))


def pinned_versions() -> dict[str, str]:
    lines = re.findall(r"(?m)^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text("utf-8"))
    return {name.lower().replace("_", "-"): version for name, version in lines}


def stated_license(name: str) -> str:
    """The license in the metadata of an installed package: the expression, else classifiers, else the first words."""
    fields = metadata(name)
    classifiers = [line.split(" :: ")[-1] for line in fields.get_all("Classifier", []) if line.startswith("License")]
    named = [text for text in classifiers if text != "OSI Approved"]
    first_line = (fields.get("License") or "").strip().partition("\n")[0]
    return fields.get("License-Expression") or ", ".join(named) or first_line or "in its file LICENSE"


def _table(text: str) -> str:
    """The rows of the table of licenses, among those of the page."""
    return text.partition(HEAD)[2].partition("\n\n")[0] + "\n"


def rows() -> dict[str, tuple[str, str, str]]:
    """The rows of the page: version, license and extras by package."""
    return {name: row for name, *row in ROW.findall(_table(PAGE.read_text("utf-8")))}


def test_every_direct_dependency_is_listed():
    pinned = pinned_versions()
    expected = {}
    for name, groups in direct_dependencies().items():
        expected[name] = [pinned[name.lower().replace("_", "-")], ", ".join(groups)]
    assert {name: [version, groups] for name, (version, _, groups) in rows().items()} == expected


def test_licenses_are_those_of_the_metadata():
    compared = 0
    for name, (version, license_, _) in rows().items():
        try:
            installed = metadata(name)["Version"].partition("+")[0]
        except PackageNotFoundError:
            continue
        if installed == version:
            compared += 1
            assert license_ == stated_license(name), name
    assert compared >= 15


def write_table() -> None:
    text, pinned = PAGE.read_text("utf-8"), pinned_versions()
    lines = []
    for name, groups in direct_dependencies().items():
        version = pinned[name.lower().replace("_", "-")]
        lines.append(f"| {name} | {version} | {stated_license(name)} | {', '.join(groups)} |\n")
    before, _, after = text.partition(HEAD)
    PAGE.write_text(before + HEAD + "".join(lines) + "\n" + after.partition("\n\n")[2], encoding="utf-8")


if __name__ == "__main__":
    write_table()
