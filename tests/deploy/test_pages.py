"""The pages: their links lead somewhere, and what they show of files and code is what is there."""

import ast
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "ops").glob("*.md")))
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
# A function of a module, as the tables of ARCHITECTURE.md name it: | `cache/blobs.py` | `Blobs.open` |
FUNCTION = re.compile(r"\| `([a-z0-9_/]+\.py)` \| ((?:`[A-Za-z_.]+`(?:, )?)+) \|")
MODULE = re.compile(r"`((?:dockyard/)?[a-z0-9_]+(?:/[a-z0-9_]+)*\.py)`")


def read(page: str) -> str:
    """The text of a page."""
    return (ROOT / page).read_text()


def find_headings(text: str) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    without_code = CODE_BLOCK.sub("", text)
    return {
        re.sub(r"[^\w -]", "", line.lower()).strip().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", without_code, re.MULTILINE)
    }


def code_blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return [text for kind, text in CODE_BLOCK.findall(read(page)) if kind == language]


def find_definitions(module: Path) -> set[str]:
    """The functions, classes and methods of a module, methods as `Class.method`."""
    names = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{each.name}"
                for each in node.body
                if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))
            }
    return names


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    """A link to a file finds it, and a link to a heading finds that, in the same page or in another."""
    for target in LINK.findall(CODE_BLOCK.sub("", read(page))):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if heading:
            assert heading in find_headings(file.read_text()), target


@pytest.mark.parametrize("page", PAGES)
def test_pictures_are_shown_once(page: str) -> None:
    """A page does not show the same picture twice."""
    pictures = re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", read(page))
    assert len(pictures) == len(set(pictures))


def test_the_functions_of_the_architecture_page_exist() -> None:
    """Each function in the tables of the request paths is in the module that is named before it."""
    rows = FUNCTION.findall(read("ARCHITECTURE.md"))
    assert len(rows) > 20
    for file, names in rows:
        defined = find_definitions(ROOT / "dockyard" / file)
        for name in re.findall(r"`([^`]+)`", names):
            assert name in defined, f"{file}: {name}"


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_modules_that_a_page_names_exist(page: str) -> None:
    """Paths of modules are relative to the repository or to the package."""
    for name in MODULE.findall(read(page)):
        assert (ROOT / name).exists() or (ROOT / "dockyard" / name).exists(), name


def find_node_files(ending: str) -> set[Path]:
    """The files in ops/nodes with this ending."""
    return set((ROOT / "ops" / "nodes").rglob(f"*.{ending}"))


def test_the_clients_page_has_the_files_for_nodes() -> None:
    """What it shows is what the files in ops/nodes say."""
    nodes = ROOT / "ops" / "nodes"
    tables = [tomllib.loads(block) for block in code_blocks("ops/CLIENTS.md", "toml")]
    for file in find_node_files("toml") | find_node_files("conf"):
        if not file.is_relative_to(nodes / "closed"):
            assert tomllib.loads(file.read_text()) in tables, file
    objects = [json.loads(block) for block in code_blocks("ops/CLIENTS.md", "json")]
    assert objects == [
        json.loads((nodes / file).read_text()) for file in ("docker-classic/daemon.json", "regctl/config.json")
    ]
    documents = [yaml.safe_load(block) for block in code_blocks("ops/CLIENTS.md", "yaml")]
    (registries,) = (each for each in documents if "mirrors" in each)
    assert registries == yaml.safe_load((nodes / "k3s" / "registries.yaml").read_text())


def test_the_nodes_page_has_the_files_for_closed_nodes() -> None:
    """It shows each file in ops/nodes/closed, and nothing else in these languages."""
    closed = ROOT / "ops" / "nodes" / "closed"
    languages: dict[str, tuple[set[Path], Callable[[str], object]]] = {
        "toml": (find_node_files("toml") | find_node_files("conf"), tomllib.loads),
        "json": (find_node_files("json"), json.loads),
        "yaml": (find_node_files("yaml"), yaml.safe_load),
    }
    for language, (files, parse) in languages.items():
        shown = [parse(block) for block in code_blocks("ops/NODES.md", language)]
        kept = [parse(file.read_text()) for file in files if file.is_relative_to(closed)]
        assert all(each in kept for each in shown), language
        assert all(each in shown for each in kept), language


def test_the_readme_has_the_commands_of_continuous_integration() -> None:
    """Its first two commands need nothing but the repository, and continuous integration runs the second."""
    assert [block.splitlines()[0] for block in code_blocks("README.md", "sh") if block.startswith("ops/")] == [
        "ops/run",
        "ops/test",
    ]
    assert code_blocks("README.md", "sh")[0] == "ops/run\n"
    assert read(".ci/run").splitlines()[-1] == 'exec "$(dirname "$0")/../ops/test"'
