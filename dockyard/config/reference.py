"""Makes the reference of all settings from the tree of settings, as a page in Markdown.

    python -m dockyard.config.reference ops/SETTINGS.md

The meaning of a key is the docstring below its field, the introduction of a section the docstring of its class. A list
of sections, also one in a section, has a table of its own.
"""

import ast
import functools
import inspect
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import attrs

from dockyard.config import settings
from dockyard.config.reader import DEFAULT_TEXT, environment_variables, fields_of, section_in_list
from dockyard.config.settings import Settings
from dockyard.config.types import Bytes, ProxyUrl, Seconds, Secret, converter

INTRODUCTION = """\
# Settings

<!-- Made from dockyard/config/settings.py by `python -m dockyard.config.reference ops/SETTINGS.md`; do not edit. -->

Every setting of Dockyard. `config.yaml` in the root of the repository is an example that contains all of them.
`dockyard config -c config.yaml` checks a file and prints the settings in effect, with secrets hidden.

## Where values come from

For each key, the first of these that has a value:

1. The environment variable with the prefix `DOCKYARD_`, such as `DOCKYARD_SERVER_PORT` for `server.port`.
2. The same variable without the prefix, such as `SERVER_PORT`. Avoid this form in Kubernetes, which sets
   `SERVER_PORT` to a URL in all pods when there is a service called `server`.
3. The YAML file: `dockyard server -c FILE`, or the environment variable `DOCKYARD_CONFIG`.
4. The default.

An empty value counts where it means something: for texts, lists and secrets (`SERVER_HOST=` is all interfaces,
`STORAGE_BUCKET=` is no bucket). For all other types, and for `logger.output` and `storage.region`, a variable that is
set and empty is the same as no variable, and an empty text in the file is the same as no key. Docker Compose and others
pass `${X}` as an empty text if `X` is not set, and no such key can have meant that. In the file, a key without a value,
or with the value `null`, is always the same as no key. Keys in a list of sections, such as `upstreams` and
`access.rules`, have no variables.

Unknown keys are errors. All errors are reported together, each with its key and its location; the command exits with
status 2.

## How values are written

| type | in the file | in a variable |
|---|---|---|
| text, path | `cache/`; a path may begin with `~` | the same |
| integer | `5000` | the same |
| boolean | `true`, `yes`, `on`, `1` or `false`, `no`, `off`, `0`, in upper or lower case | the same |
| duration | `24h`, `1m30s`, `500ms`, `0`; the units are `h`, `m`, `s`, `ms`, `us`, `ns` | the same |
| size | `50GiB` or `50Gi` (powers of 1024), `500MB` (powers of 1000), or a number of bytes | the same |
| list | `["/v2/", "/healthz"]` | separated by commas: `/v2/,/healthz` |
| secret | a text; it is never logged, quoted in an error, or printed by `dockyard config` | the same |

`${NAME}` in a value of the file is replaced by the environment variable `NAME`. It is replaced once: a `${...}` in the
variable itself is not. If the variable is not set, `${NAME}` is used as written, and a warning is logged. Values that
come from the environment are not changed.
"""

_TYPE_NAMES = [
    (bool, "boolean"),
    (int, "integer"),
    (str, "text"),
    (ProxyUrl, "text"),
    (Path, "path"),
    (Secret, "secret"),
    (Seconds, "duration"),
    (Bytes, "size"),
    (tuple[str, ...], "list"),
]


def make_page() -> str:
    """Return the whole page. Raises KeyError for a field without a docstring."""
    defaults = converter().unstructure(Settings())
    parts = [INTRODUCTION]
    for field in fields_of(Settings):
        if element := section_in_list(field.type):
            parts.extend(_list_tables(element, f"{field.name}[]"))
        else:
            parts.extend(_tables(field.type, field.name, defaults[field.name], has_variables=True))
    return "\n".join(parts)


def _list_tables(element: type[Any], key: str) -> Iterator[str]:
    required = {field.name: "" for field in fields_of(element) if field.default is attrs.NOTHING}
    yield from _tables(element, key, converter().unstructure(element(**required)), has_variables=False)


def _tables(section: type[Any], key: str, values: dict[str, Any], *, has_variables: bool) -> Iterator[str]:
    """Yield the part of a section, then one for each list of sections in it."""
    head = ["key", "type", "default", *(["variable"] if has_variables else []), "meaning"]
    rows = _rows(section, key, values, has_variables=has_variables)
    table = [_row(head), "|---" * len(head) + "|", *(_row(cells) for cells in rows)]
    yield "\n".join([f"## {key}", "", inspect.getdoc(section) or "", "", *table, ""])
    for field in fields_of(section):
        if element := section_in_list(field.type):
            yield from _list_tables(element, f"{key}.{field.name}[]")


def _rows(section: type[Any], above: str, values: dict[str, Any], *, has_variables: bool) -> Iterator[list[str]]:
    """Yield the cells of each key in a section. `values` are its defaults as they are written in a file."""
    for field in fields_of(section):
        key, value = f"{above}.{field.name}", values[field.name]
        if isinstance(value, dict):
            yield from _rows(field.type, key, value, has_variables=has_variables)
            continue
        is_list = section_in_list(field.type) is not None
        variable = ["none" if is_list else f"`{environment_variables(key)[0]}`"] if has_variables else []
        kind = f"[list](#{_anchor(key)})" if is_list else _type_name(field.type)
        meaning = _docstrings()[section.__name__, field.name]
        yield [f"`{key}`", kind, _default(field, value), *variable, meaning]


def _anchor(key: str) -> str:
    """The anchor of the heading of a list of sections, as GitHub makes it: without punctuation."""
    return key.replace(".", "")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    return next(name for known, name in _TYPE_NAMES if known == kind)


def _default(field: Any, value: Any) -> str:
    if field.default is attrs.NOTHING:
        return "required"
    if DEFAULT_TEXT in field.metadata:
        return str(field.metadata[DEFAULT_TEXT])
    if value in ("", []):
        return "empty"
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


@functools.cache
def _docstrings() -> dict[tuple[str, str], str]:
    """The docstrings of the fields in `settings.py`, by class and field, each on one line."""
    found = {}
    for node in ast.parse(inspect.getsource(settings)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for statement, following in pairwise(node.body):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[node.name, name] = " ".join(text.split())
    return found


def main() -> None:
    """Write the page to the file that is the only argument."""
    Path(sys.argv[1]).write_text(make_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
