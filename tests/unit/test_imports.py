"""The structure of the package: which module may import which, and where each outside library may be used.

Every module of `dockyard/` is read, not imported, and every import in it counts: at the top, in a function, or under
TYPE_CHECKING.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "dockyard"

# From the lowest layer to the highest. A module may import from every layer below its own and from its own package,
# and from no other package of its layer. `dockyard` itself holds the version, which all may read.
LAYERS = [
    {"errors", "exit_status", "signals"},
    {"oci"},
    {"config"},
    {"log_writer"},
    {"routing", "log", "metrics", "http1", "first_pull"},
    {"upstream", "storage", "workers", "access"},
    {"s3"},
    {"cache"},
    {"web"},
    {"worker", "preconditions"},
    {"supervisor", "pull", "check", "passwd"},
    {"cli"},
    {"__main__"},
]

EVERYWHERE = {"dockyard"}
# Where an outside library may be imported; its exceptions do not leave there. A library without a line may not be used.
LIBRARIES = {
    "attrs": EVERYWHERE,
    "bcrypt": {"dockyard.access.passwords"},
    "cachetools": EVERYWHERE,
    "cattrs": {"dockyard.config.types", "dockyard.workers.messages"},
    "click": {"dockyard.cli"},
    "cryptography": {"dockyard.access.keys", "dockyard.access.seal"},
    "falcon": {"dockyard.web"},
    "granian": {"dockyard.supervisor"},
    "jwt": {"dockyard.access.keys", "dockyard.access.tokens"},
    "minio": {"dockyard.s3"},
    "prometheus_client": {"dockyard.metrics"},
    "rich": {"dockyard.pull.output"},
    "structlog": EVERYWHERE,  # but not in the pure modules below
    "urllib3": {
        "dockyard.http1",
        "dockyard.upstream.transport",
        "dockyard.access.key_download",
        "dockyard.s3",
        "dockyard.pull.client",
    },
    "yaml": {"dockyard.config.reader"},
}

# No I/O, no clock, no logging: these know only values.
PURE = {
    "dockyard.errors",
    "dockyard.access.json_objects",
    "dockyard.access.networks",
    "dockyard.access.principals",
    "dockyard.access.review",
    "dockyard.access.rules",
    "dockyard.oci",
    "dockyard.routing",
    "dockyard.config.hosts",
    "dockyard.config.units",
    "dockyard.config.who",
    "dockyard.storage.items",
    "dockyard.storage.keys",
    "dockyard.workers.rendezvous",
    "dockyard.cache.freshness",
    "dockyard.pull.images",
    "dockyard.pull.platforms",
    "dockyard.pull.plan",
    "dockyard.pull.retries",
}
# What a pure module may use of the standard library and of others.
PURE_LIBRARIES = {
    *(
        "attrs",
        "base64",
        "binascii",
        "bisect",
        "collections",
        "decimal",
        "enum",
        "fractions",
        "functools",
        "hashlib",
        "ipaddress",
    ),
    *("itertools", "json", "re", "string", "types", "typing", "urllib"),
}

# Pure modules that decide by settings, and the modules of those. The types of settings are values.
OF_SETTINGS = {"dockyard.routing", "dockyard.access.networks", "dockyard.access.review", "dockyard.access.rules"}
SETTINGS = {"dockyard.config.settings", "dockyard.config.types"}

# Plain blocking Python that runs in threads, and the pure modules: never async.
BLOCKING = PURE | {
    "dockyard.access",
    "dockyard.http1",
    "dockyard.upstream",
    "dockyard.storage",
    "dockyard.s3",
    "dockyard.cache.blob_sources",
    "dockyard.cache.download_job",
    "dockyard.pull",
    "dockyard.check",
}


@attrs.frozen
class Import:
    """One import: the module that holds it, and the one that is wanted."""

    module: str
    wanted: str
    line: int


def is_within(module: str, names: set[str]) -> bool:
    """Tell whether a module is one of these, or in one of these packages."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


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


def layer_of(module: str) -> int | None:
    """Return the layer of a module of ours; None when it is in no layer."""
    name = module.split(".")[1]
    return next((number for number, names in enumerate(LAYERS) if name in names), None)


def judge(found: Import) -> str | None:
    """Return what is wrong with an import, or None."""
    module, wanted = found.module, found.wanted
    library = wanted.partition(".")[0]
    if library == "":
        return "is relative"
    if library == "dockyard":
        return judge_own(module, wanted)
    if is_within(module, PURE) and library not in PURE_LIBRARIES:
        return "is not for pure modules"
    if library in sys.stdlib_module_names:
        return "is not for blocking modules" if library == "asyncio" and is_within(module, BLOCKING) else None
    if library not in LIBRARIES:
        return "is not listed"
    return None if is_within(module, LIBRARIES[library]) else "may not be used here"


def judge_own(module: str, wanted: str) -> str | None:
    """Return what is wrong with an import of a module of ours, or None."""
    if wanted in {"dockyard", "dockyard.__version__"}:
        return None
    if module == "dockyard":
        return "goes up"
    here, there = layer_of(module), layer_of(wanted)
    if here is None or there is None:
        return "is of a module without a layer"
    if module.split(".")[1] == wanted.split(".")[1]:
        return "is not pure" if is_within(module, PURE) and not is_within(wanted, PURE) else None
    if there >= here:
        return "goes up" if there > here else "goes sideways"
    is_open = is_within(wanted, PURE) or (module in OF_SETTINGS and wanted in SETTINGS)
    return "is not pure" if is_within(module, PURE) and not is_open else None


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
            f"{module}:{node.lineno}: async in a blocking module" for node in ast.walk(tree) if isinstance(node, waits)
        ]
    return faults


def find_modules() -> dict[str, Path]:
    """Return the files of the package by the names of their modules."""
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = find_modules()


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_and_libraries_stay_in_their_place(module: str) -> None:
    """No import goes up or sideways, and no library is used where it may not be."""
    assert find_faults(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize("module", [module for module in MODULES if module != "dockyard"])
def test_every_module_has_a_layer(module: str) -> None:
    """A new module is put into a layer before it is used."""
    assert layer_of(module) is not None


def test_the_walk_finds_the_modules() -> None:
    """A walk over nothing would find no fault."""
    assert {"dockyard", "dockyard.errors", "dockyard.oci", "dockyard.oci.reference", "dockyard.routing"} <= set(MODULES)


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("dockyard.oci.ranges", "from dockyard.config.settings import Upstream", "goes up"),
        ("dockyard.oci.ranges", "import dockyard.web.app", "goes up"),
        ("dockyard.oci.ranges", "from dockyard import log", "goes up"),
        ("dockyard.errors", "from dockyard.oci import reference", "goes up"),
        ("dockyard.config.settings", "from dockyard.routing import Router", "goes up"),
        ("dockyard.config.settings", "import dockyard.log as log", "goes up"),
        ("dockyard.storage.local", "from dockyard.upstream.client import RegistryClient", "goes sideways"),
        ("dockyard.upstream.tokens", "def f():\n    from dockyard.workers import shard_lock", "goes sideways"),
        ("dockyard.workers.peers", "if x:\n    from dockyard.cache.downloads import Downloads", "goes up"),
        ("dockyard.routing", "from dockyard.log import set_up", "goes sideways"),
        ("dockyard.web.app", "import dockyard.cli", "goes up"),
        ("dockyard.supervisor", "from dockyard import cli", "goes up"),
        ("dockyard", "from dockyard.config.settings import load", "goes up"),
        ("dockyard.web.app", "from dockyard.helpers import x", "is of a module without a layer"),
        ("dockyard.helpers", "from dockyard.errors import Denied", "is of a module without a layer"),
        ("dockyard.web.app", "from . import body", "is relative"),
        ("dockyard.web.app", "from .body import BlobBody", "is relative"),
        ("dockyard.web.app", "from ..cache import blobs", "is relative"),
        ("dockyard.cache.blobs", "import falcon.asgi", "may not be used here"),
        ("dockyard.cli", "from falcon import App", "may not be used here"),
        ("dockyard.web.request_filter", "import granian", "may not be used here"),
        ("dockyard.storage.local", "import minio", "may not be used here"),
        ("dockyard.upstream.tokens", "from urllib3 import exceptions", "may not be used here"),
        ("dockyard.config.settings", "import yaml", "may not be used here"),
        ("dockyard.web.app", "import requests", "is not listed"),
        ("dockyard.cache.downloads", "import falcon_helpers", "is not listed"),
        ("dockyard.oci.manifest", "import structlog", "is not for pure modules"),
        ("dockyard.oci.manifest", "import time", "is not for pure modules"),
        ("dockyard.routing", "import socket", "is not for pure modules"),
        ("dockyard.cache.freshness", "from datetime import datetime", "is not for pure modules"),
        ("dockyard.cache.freshness", "from dockyard.storage.local import LocalTier", "is not pure"),
        ("dockyard.cache.freshness", "from dockyard.cache.blobs import Blobs", "is not pure"),
        ("dockyard.storage.keys", "from dockyard.config.settings import Settings", "is not pure"),
        ("dockyard.upstream.client", "import asyncio", "is not for blocking modules"),
        ("dockyard.storage.local", "async def f(): pass", "async in a blocking module"),
        ("dockyard.cache.download_job", "import asyncio.events", "is not for blocking modules"),
        ("dockyard.oci.ranges", "import re, os", "is not for pure modules"),
    ],
)
def test_a_violation_is_found(module: str, source: str, fault: str) -> None:
    """The test finds a violation of each rule."""
    faults = find_faults(module, source)
    assert len(faults) == 1
    assert faults[0].endswith(fault)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dockyard.cli", "from dockyard import __version__, supervisor\nfrom dockyard.config import settings"),
        ("dockyard.web.handlers", "from dockyard import __version__"),
        ("dockyard.web.app", "import falcon\nimport falcon.asgi\nfrom dockyard.web.bodies import ResponseBody"),
        (
            "dockyard.cache.download_job",
            "from dockyard.upstream.client import RegistryClient\nimport structlog, threading",
        ),
        ("dockyard.cache.downloads", "import asyncio\nasync def f(): await g()"),
        ("dockyard.routing", "from dockyard.config.settings import Upstream\nfrom dockyard.oci.reference import Name"),
        ("dockyard.storage.keys", "from dockyard.oci.reference import Name"),
        ("dockyard.s3.client", "import minio.signer, urllib3"),
        ("dockyard.upstream.transport", "import urllib3.connectionpool, ssl"),
        ("dockyard.storage.local", "from dockyard import metrics, log"),
        ("dockyard.oci", ""),
    ],
)
def test_what_the_design_allows_is_no_fault(module: str, source: str) -> None:
    """The rules forbid nothing else."""
    assert find_faults(module, source) == []
