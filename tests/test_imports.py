"""The walls of the house: which module may import which, and where each outside library has its door.

Every module of `dockyard/` is read, not imported, and every import in it counts: at the top, in a function, or under
TYPE_CHECKING.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

HOUSE = Path(__file__).parents[1] / "dockyard"

# From the ground up. Imports go down: a room may use any floor below its own, and its own package, and no other room of
# its floor. `dockyard` itself holds the version, which all may read.
FLOORS = [
    {"errors"},
    {"oci"},
    {"addresses", "certificates", "units"},  # config.py in parts: how hosts, durations and sizes are written,
    {"values", "sources"},  # the types of settings, and where they are read from
    {"config"},
    {"routing", "log", "metrics"},
    {"workers", "storage", "upstream"},
    {"cache"},
    {"web"},
    {"server", "pull"},
    {"cli"},
    {"__main__"},
]

EVERYWHERE = {"dockyard"}
# Where an outside library may be imported; its exceptions do not leave there. A library without a line has no door.
DOORS = {
    "attrs": EVERYWHERE,
    "cattrs": {"dockyard.values", "dockyard.workers.peers"},
    "click": {"dockyard.cli"},
    "falcon": {"dockyard.web"},
    "granian": {"dockyard.server"},
    "minio": {"dockyard.storage.s3"},
    "prometheus_client": {"dockyard.metrics"},
    "rich": {"dockyard.pull.show"},
    "structlog": EVERYWHERE,  # closed to the pure rooms below
    "urllib3": {"dockyard.upstream.transport", "dockyard.storage.s3", "dockyard.pull.client"},
    "yaml": {"dockyard.sources"},
}

# No I/O, no clock, no logging: these know only values.
PURE = {
    "dockyard.errors",
    "dockyard.oci",
    "dockyard.routing",
    "dockyard.storage.keys",
    "dockyard.workers.shards",
    "dockyard.cache.freshness",
    "dockyard.pull.images",
    "dockyard.pull.platforms",
    "dockyard.pull.plan",
    "dockyard.pull.tries",
}
# What a pure room may use of the standard library and of others.
PURE_TOOLS = {
    *("attrs", "base64", "bisect", "collections", "enum", "functools", "hashlib", "ipaddress", "itertools", "json"),
    *("re", "string", "types", "typing", "urllib"),
}

# Plain blocking Python that runs in threads, and the pure rooms: never async.
BLOCKING = PURE | {"dockyard.upstream", "dockyard.storage", "dockyard.cache.fill", "dockyard.pull"}


@attrs.frozen
class Import:
    """One import: the module that holds it, and the one that is wanted."""

    module: str
    wanted: str
    line: int


def is_within(module: str, rooms: set[str]) -> bool:
    """Tell whether a module is one of these, or in one of these packages."""
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def find_imports(module: str, tree: ast.AST) -> Iterator[Import]:
    """Yield all imports of a module; a relative one with its dots."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (Import(module, name.name, node.lineno) for name in names)
            case ast.ImportFrom(module="dockyard", level=0, names=names):  # from dockyard import config
                yield from (Import(module, f"dockyard.{name.name}", node.lineno) for name in names)
            case ast.ImportFrom(module=wanted, level=level):
                yield Import(module, "." * level + (wanted or ""), node.lineno)


def floor_of(module: str) -> int | None:
    """Return the floor of a module of ours; None when nobody gave it one."""
    room = module.split(".")[1]
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms), None)


def judge(found: Import) -> str | None:
    """Return what is wrong with an import, or None."""
    module, wanted = found.module, found.wanted
    library = wanted.partition(".")[0]
    if library == "":
        return "is relative"
    if library == "dockyard":
        return judge_own(module, wanted)
    if is_within(module, PURE) and library not in PURE_TOOLS:
        return "has no place in a pure room"
    if library in sys.stdlib_module_names:
        return "has no place in a blocking room" if library == "asyncio" and is_within(module, BLOCKING) else None
    if library not in DOORS:
        return "has no door"
    return None if is_within(module, DOORS[library]) else "is outside its door"


def judge_own(module: str, wanted: str) -> str | None:
    """Return what is wrong with an import of a module of ours, or None."""
    if wanted in {"dockyard", "dockyard.__version__"}:
        return None
    if module == "dockyard":
        return "goes up"
    here, there = floor_of(module), floor_of(wanted)
    if here is None or there is None:
        return "is of a room without a floor"
    if module.split(".")[1] == wanted.split(".")[1]:
        return "leaves a pure room" if is_within(module, PURE) and not is_within(wanted, PURE) else None
    if there >= here:
        return "goes up" if there > here else "goes sideways"
    is_open = is_within(wanted, PURE) or (module == "dockyard.routing" and wanted == "dockyard.config")
    return "leaves a pure room" if is_within(module, PURE) and not is_open else None


def find_faults(module: str, source: str) -> list[str]:
    """Return all that is wrong with the imports of a module, each with its line."""
    tree = ast.parse(source)
    faults = [
        f"{found.module}:{found.line}: {found.wanted} {fault}"
        for found in find_imports(module, tree)
        if (fault := judge(found))
    ]
    if is_within(module, BLOCKING):
        waits = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)
        faults += [
            f"{module}:{node.lineno}: async in a blocking room" for node in ast.walk(tree) if isinstance(node, waits)
        ]
    return faults


def find_modules() -> dict[str, Path]:
    """Return the files of the house by the names of their modules."""
    modules = {}
    for path in sorted(HOUSE.rglob("*.py")):
        parts = path.relative_to(HOUSE.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = find_modules()


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_and_through_their_doors(module: str) -> None:
    """No import goes up or sideways, and no library is used outside its door."""
    assert find_faults(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize("module", [module for module in MODULES if module != "dockyard"])
def test_every_module_has_a_floor(module: str) -> None:
    """A new room is put on a floor before it is used."""
    assert floor_of(module) is not None


def test_the_walk_finds_the_modules() -> None:
    """A walk over nothing would find no fault."""
    assert {"dockyard", "dockyard.errors", "dockyard.oci", "dockyard.oci.reference", "dockyard.routing"} <= set(MODULES)


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("dockyard.oci.ranges", "from dockyard.config import Upstream", "goes up"),
        ("dockyard.oci.ranges", "import dockyard.web.app", "goes up"),
        ("dockyard.oci.ranges", "from dockyard import log", "goes up"),
        ("dockyard.errors", "from dockyard.oci import reference", "goes up"),
        ("dockyard.config", "from dockyard.routing import Router", "goes up"),
        ("dockyard.config", "import dockyard.log as log", "goes up"),
        ("dockyard.storage.local", "from dockyard.upstream.registry import Registry", "goes sideways"),
        ("dockyard.upstream.tokens", "def f():\n    from dockyard.workers import slots", "goes sideways"),
        ("dockyard.workers.peers", "if x:\n    from dockyard.cache.flights import Flights", "goes up"),
        ("dockyard.routing", "from dockyard.log import set_up", "goes sideways"),
        ("dockyard.web.app", "import dockyard.cli", "goes up"),
        ("dockyard.server", "from dockyard import cli", "goes up"),
        ("dockyard", "from dockyard.config import load", "goes up"),
        ("dockyard.web.app", "from dockyard.helpers import x", "is of a room without a floor"),
        ("dockyard.helpers", "from dockyard.errors import Denied", "is of a room without a floor"),
        ("dockyard.web.app", "from . import body", "is relative"),
        ("dockyard.web.app", "from .body import BlobBody", "is relative"),
        ("dockyard.web.app", "from ..cache import blobs", "is relative"),
        ("dockyard.cache.blobs", "import falcon.asgi", "is outside its door"),
        ("dockyard.cli", "from falcon import App", "is outside its door"),
        ("dockyard.web.asgi", "import granian", "is outside its door"),
        ("dockyard.storage.local", "import minio", "is outside its door"),
        ("dockyard.upstream.tokens", "from urllib3 import exceptions", "is outside its door"),
        ("dockyard.config", "import yaml", "is outside its door"),
        ("dockyard.web.app", "import requests", "has no door"),
        ("dockyard.cache.flights", "import falcon_helpers", "has no door"),
        ("dockyard.oci.manifest", "import structlog", "has no place in a pure room"),
        ("dockyard.oci.manifest", "import time", "has no place in a pure room"),
        ("dockyard.routing", "import socket", "has no place in a pure room"),
        ("dockyard.cache.freshness", "from datetime import datetime", "has no place in a pure room"),
        ("dockyard.cache.freshness", "from dockyard.storage.local import LocalTier", "leaves a pure room"),
        ("dockyard.cache.freshness", "from dockyard.cache.blobs import Blobs", "leaves a pure room"),
        ("dockyard.storage.keys", "from dockyard.config import Settings", "leaves a pure room"),
        ("dockyard.upstream.registry", "import asyncio", "has no place in a blocking room"),
        ("dockyard.storage.local", "async def f(): pass", "async in a blocking room"),
        ("dockyard.cache.fill", "import asyncio.events", "has no place in a blocking room"),
        ("dockyard.oci.ranges", "import re, os", "has no place in a pure room"),
    ],
)
def test_a_violation_is_found(module: str, source: str, fault: str) -> None:
    """The test of the walls sees a hole in each of them."""
    faults = find_faults(module, source)
    assert len(faults) == 1
    assert faults[0].endswith(fault)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dockyard.cli", "from dockyard import __version__, config, server"),
        ("dockyard.web.handlers", "from dockyard import __version__"),
        ("dockyard.web.app", "import falcon\nimport falcon.asgi\nfrom dockyard.web.body import BlobBody"),
        ("dockyard.cache.fill", "from dockyard.upstream.registry import Registry\nimport structlog, threading"),
        ("dockyard.cache.flights", "import asyncio\nasync def f(): await g()"),
        ("dockyard.routing", "from dockyard.config import Upstream\nfrom dockyard.oci.reference import Name"),
        ("dockyard.storage.keys", "from dockyard.oci.reference import Name"),
        ("dockyard.storage.s3.wire", "import minio.signer, urllib3"),
        ("dockyard.upstream.transport", "import urllib3.connectionpool, ssl"),
        ("dockyard.storage.local", "from dockyard import metrics, log"),
        ("dockyard.oci", ""),
    ],
)
def test_what_the_design_allows_is_no_fault(module: str, source: str) -> None:
    """The walls have doors where they should."""
    assert find_faults(module, source) == []
