"""The names of classes in `dockyard/`: a public name stands for one class, so that it can be searched for.

The files are parsed, not imported.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "dockyard"


def public_classes(source: str) -> Iterator[str]:
    """Yield the names of the public classes at the top level of a module."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def find_duplicates(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """Return each public class name that several modules define, with these modules."""
    modules: dict[str, list[str]] = defaultdict(list)
    for module, source in sources.items():
        for name in public_classes(source):
            modules[name].append(module)
    return {name: found for name, found in modules.items() if len(found) > 1}


def read_sources() -> dict[str, str]:
    """Read all modules of the package, by path."""
    return {str(path.relative_to(ROOT)): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def test_no_two_modules_define_a_class_of_the_same_name() -> None:
    """Private classes, whose names begin with an underscore, may share one."""
    assert find_duplicates(read_sources()) == {}


def test_the_classes_are_found() -> None:
    """Without classes there would be no duplicates."""
    names = {name for source in read_sources().values() for name in public_classes(source)}

    assert {"Digest", "Settings", "Router", "DockyardClient"} <= names


@pytest.mark.parametrize(
    ("sources", "duplicates"),
    [
        (["class A: pass", "class B: pass"], {}),
        (["class A: pass", "class A(Protocol): ..."], {"A": ["0", "1"]}),
        (["@attrs.frozen\nclass A:\n    x: int", "class A(Exception): pass", "class A: pass"], {"A": ["0", "1", "2"]}),
        (["class _A: pass", "class _A: pass"], {}),
        (["class A: pass", "from a import A\ndef f():\n    return A"], {}),
    ],
)
def test_duplicates_are_found(sources: Iterable[str], duplicates: dict[str, list[str]]) -> None:
    """Only definitions count, not imports."""
    assert find_duplicates({str(number): source for number, source in enumerate(sources)}) == duplicates
