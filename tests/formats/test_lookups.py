"""Fast look-ups in XML trees, against those of ElementTree."""

from xml.etree import ElementPath, ElementTree

import pytest

from clamplib.formats.lookups import fast_lookups

TREE = ElementTree.fromstring(
    "<a xmlns:n='urn:n'><b/><b>1<c>first</c><c/></b><b><c>second<d/></c><c-e k='v'>x</c-e></b>"
    "<d><b><c>deep</c></b></d><n:b><n:c>named</n:c></n:b></a>"
)
PATHS = ["b/c", "b/c-e", "b/d", "x/c", "c/b", "b", "b/c/d", "b/", "b/*", "*/c", "./c", "b/.", "b/..", ".//c", "d/b/c"]
PATHS += ["b[2]/c", "b/c[1]", "b/c-e[@k]", "{urn:n}b/{urn:n}c", "n:b/n:c"]


def look_up(path: str, namespaces: dict[str, str] | None) -> tuple:
    tree = ElementTree.ElementTree(TREE)
    return (
        TREE.find(path, namespaces),
        TREE.findall(path, namespaces),
        TREE.findtext(path, None, namespaces),
        TREE.findtext(path, "none", namespaces),
        tree.findall(path, namespaces),
    )


@pytest.mark.parametrize("namespaces", [{"n": "urn:n"}, {"": "urn:n", "n": "urn:n"}])
@pytest.mark.parametrize("path", PATHS)
def test_the_results_are_those_of_elementtree(path, namespaces):
    expected = look_up(path, namespaces)
    with fast_lookups():
        assert look_up(path, namespaces) == expected
        assert ElementPath.find(TREE, path, namespaces) is expected[0]


def test_without_namespaces_too():
    found = TREE.find("b/c"), TREE.findall("b/c"), TREE.findtext("b/c"), TREE.findtext("x/c", "none")
    with fast_lookups():
        assert (TREE.find("b/c"), TREE.findall("b/c"), TREE.findtext("b/c"), TREE.findtext("x/c", "none")) == found
        with pytest.raises(SyntaxError):
            TREE.find("/b/c")


def test_elementtree_is_left_as_it_was():
    before = ElementPath.find, ElementPath.findall, ElementPath.findtext
    with pytest.raises(ZeroDivisionError), fast_lookups(), fast_lookups():
        raise ZeroDivisionError
    assert (ElementPath.find, ElementPath.findall, ElementPath.findtext) == before
