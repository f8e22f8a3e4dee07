"""The page `ops/CLIENT_MATRIX.md`: its cells are read by the tests, and written by `pytest --write-matrix`."""

import fcntl
import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from tests.clients.ways import ROWS, Row
from tests.support.paths import ROOT

PAGE = ROOT / "ops" / "CLIENT_MATRIX.md"
STATES = ("cold", "warm", "four at once", "wrong tag", "registry down", "Dockyard down")
FRONTS = ("HTTP", "TLS", "HAProxy", "nginx")
VERSION = "version"

INTRO = """\
# What each client does

Real clients pull through Dockyard: each way to point them at it, in each state, through each kind of front. The page is
written by a test, with the files of [`nodes/`](nodes/) and nothing else; do not edit it:

```sh
pytest tests/clients/test_matrix.py -m "long or not long" --write-matrix
```

A server stands for all registries that a client could ask itself, and counts every request that does not go through
Dockyard. That count is 0, also for images with attestations, but where the table says `asks the registry`.

- **cold**: nobody has pulled the image. `right`: the client has all of it, and each blob was read from the registry
  once, through Dockyard.
- **warm**: another client has pulled it. `right`: and no blob and no manifest was read from the registry by its digest.
- **four at once**: four images with a common layer, that nobody has pulled, at the same time.
- **wrong tag**: the registry has no such tag. `asks the registry`: the client asked Dockyard, which responded with 404,
  then the registry itself. `fails`: it did not.
- **registry down**: the image is in the cache, and the registry refuses connections.
- **Dockyard down**: Dockyard refuses connections, the registry does not. `asks the registry`: it is pulled from there.

A way *by name* has Dockyard's address in the name of the image. An *open* one has the name of the registry, and falls
back to it. A *closed* one never asks the registry ([NODES.md](NODES.md)). [CLIENTS.md](CLIENTS.md#which-file) says
which file is for which version.
"""
FRONTS_INTRO = """\
## Fronts

All states of the table above, with the address of Dockyard over HTTP and over TLS, and with that of
[HAProxy](haproxy/haproxy.cfg) and [nginx](nginx/nginx.conf) in front of it.
"""


def parse_page(text: str) -> dict[str, dict[str, str]]:
    """The cells of each row by their columns; the version of a client is a cell of all its rows."""
    tables = [
        [_cells(line) for line in table.splitlines()] for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    ]
    found: dict[str, dict[str, str]] = {}
    versions: dict[str, str] = {}
    for head, _, *lines in tables:
        if head[:2] == ["client", "way"]:
            for line in lines:
                found.setdefault(f"{line[0]}: {line[1]}", {}).update(zip(head[2:], line[2:], strict=True))
        elif head[0] == "client":
            versions |= {line[0]: line[1] for line in lines}
    for key, cells in found.items():
        cells[VERSION] = versions.get(key.partition(": ")[0], "")
        cells.pop("files", None)
    return found


def write_page(cells: Mapping[str, Mapping[str, str]]) -> str:
    """The page with these cells. One that is missing is empty, which no test accepts."""
    states = [
        [row.client, row.way, _links(row), *(cells.get(row.key, {}).get(state, "") for state in STATES)] for row in ROWS
    ]
    fronts = [[row.client, row.way, *(cells.get(row.key, {}).get(front, "") for front in FRONTS)] for row in ROWS]
    versions = [
        [client, next((cells[row.key][VERSION] for row in rows if cells.get(row.key, {}).get(VERSION)), "")]
        for client, rows in ((client, list(rows)) for client, rows in groupby(ROWS, lambda row: row.client))
    ]
    return "\n".join(
        [
            INTRO,
            _table(["client", "way", "files", *STATES], states),
            FRONTS_INTRO,
            _table(["client", "way", *FRONTS], fronts),
            "## Versions\n",
            _table(["client", VERSION], versions),
        ]
    )


def read_rows() -> dict[str, dict[str, str]]:
    """The cells of the page."""
    return parse_page(PAGE.read_text()) if PAGE.exists() else {}


def record(key: str, cells: Mapping[str, str], page: Path = PAGE) -> None:
    """Write cells of one row into the page. Several processes may do so at once."""
    with page.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        found = parse_page(file.read())
        found.setdefault(key, {}).update(cells)
        file.seek(0)
        file.truncate()
        file.write(write_page(found))


def _links(row: Row) -> str:
    return ", ".join(f"[{file.removesuffix('/hosts.toml')}](nodes/{file})" for file in row.files) or "none"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in _with_rule(head, rows))


def _with_rule(head: list[str], rows: list[list[str]]) -> Iterator[list[str]]:
    yield head
    yield ["---"] * len(head)
    yield from rows
