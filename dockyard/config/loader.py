"""Where settings come from: one YAML file and the environment, read into a tree of attrs classes.

The tree decides what is read, key by key, so nothing in the file can make this do more than the tree has keys. Every
value is text here, whatever YAML would guess of it (`password: 0123` is not 83), until the type of its field parses it.
Each key may come from the environment, which wins, unless it stands in a list.

A mistake does not stop the reading: it is noted with its key and place, and the default stands in. It quotes the value
as it was written, never what `${VAR}` stands for, and never a secret.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

import attrs
import yaml

MAX_FILE_BYTES = 2**20
NOT_A_KEY = {"is_key": False}
"""Metadata of a field that is no setting."""

Tree = TypeVar("Tree")

_VARIABLE = re.compile(r"\$\{([^}]+)\}")
_UNPRINTABLE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")
_QUOTED_CHARACTERS = 80


@attrs.define
class Reader(Generic[Tree]):
    """Reads one `root`, once.

    `structure(text, type)` makes a value or raises ValueError; for a tuple it gets text or a list of texts.
    Values of the type `secret` are never quoted.
    """

    root: type[Tree]
    environ: Mapping[str, str]
    structure: Callable[[Any, Any], Any]
    secret: type
    mistakes: list[str] = attrs.field(factory=list)
    warnings: list[str] = attrs.field(factory=list)
    written: dict[str, str] = attrs.field(factory=dict, repr=False)
    """What stands where a key was given, `${VAR}` not expanded; secrets are left out."""
    places: dict[str, str] = attrs.field(factory=dict)
    """Where each key and section was given: `config.yaml:12` or `env SERVER_PORT`."""
    _wrong: set[str] = attrs.field(factory=set)
    _unset: set[str] = attrs.field(factory=set)
    _file: str = ""

    def read(self, path: Path | None) -> Tree:
        """The whole tree. It is complete even when there were mistakes."""
        node = None
        if path is not None:
            self._file = str(path)
            try:
                node = _compose(path)
            except ValueError as exc:
                self.mistakes.append(str(exc))
        tree: Tree = self._section(self.root, node, "", in_list=False)
        return tree

    def mistake(self, key: str, message: str) -> None:
        """Note what is wrong with a key, once: after the first mistake its default stands there."""
        if key in self._wrong:
            return
        self._wrong.add(key)
        written = self.written.get(key, "")
        quoted = f" = {_quote(written)}" if written and "@" not in written else ""  # user:password@host
        place = next((self.places[above] for above in _upwards(key) if above in self.places), "")
        subject = f"{key}{quoted}: " if key else ""
        hint = "; a ${...} in it is not set" if key in self._unset else ""
        self.mistakes.append(f"{subject}{message}{hint}" + (f" ({place})" if place else ""))

    def _is_section(self, kind: Any) -> bool:
        return isinstance(kind, type) and attrs.has(kind) and kind is not self.secret

    def _section(self, cls: type[Any], node: yaml.Node | None, key: str, *, in_list: bool) -> Any:
        fields = _keys(cls)
        entries = self._entries(node, key, [field.name for field in fields])
        values: dict[str, Any] = {}
        for field in fields:
            path = f"{key}.{field.name}".lstrip(".")
            child = entries.get(field.name)
            if self._is_section(field.type):
                values[field.name] = self._section(field.type, child, path, in_list=in_list)
            elif _is_list_of_sections(field.type):
                if child is not None:
                    values[field.name] = self._sections(get_args(field.type)[0], child, path)
            elif (given := self._given(field.type, child, path, in_list=in_list)) is not None:
                self._structure_into(values, field, path, given)
            if field.default is attrs.NOTHING and field.name not in values:
                self.mistake(path, "is missing")
                values[field.name] = ""
        return cls(**values)

    def _sections(self, cls: type[Any], node: yaml.Node, key: str) -> tuple[Any, ...]:
        self.places[key] = self._place(node)
        if not isinstance(node, yaml.SequenceNode):
            self.mistake(key, "must be a list")
            return ()
        return tuple(
            self._section(cls, child, f"{key}[{index}]", in_list=True) for index, child in enumerate(node.value)
        )

    def _structure_into(self, values: dict[str, Any], field: Any, key: str, given: str | list[str]) -> None:
        if any(_UNPRINTABLE.search(text) for text in ([given] if isinstance(given, str) else given)):
            self.mistake(key, "holds a line break, a control character or broken UTF-8")
            return
        try:
            values[field.name] = self.structure(given, field.type)
        except ValueError as exc:
            self.mistake(key, f"{exc}{_kubernetes_hint(self.places[key], given)}")

    def _given(self, kind: Any, node: yaml.Node | None, key: str, *, in_list: bool) -> str | list[str] | None:
        """The text of one key, from the environment or the file; None where nobody gave any."""
        if not in_list:
            bare = key.upper().replace(".", "_")
            for variable in (f"DOCKYARD_{bare}", bare):
                if variable in self.environ:
                    self._remember(kind, key, f"env {variable}", self.environ[variable])
                    return self.environ[variable]
        match node:
            case None:
                return None
            case yaml.ScalarNode():
                self._remember(kind, key, self._place(node), str(node.value))
                return self._text(node, key)
            case yaml.SequenceNode() if kind == tuple[str, ...] and all(
                isinstance(item, yaml.ScalarNode) for item in node.value
            ):
                self._remember(kind, key, self._place(node), ", ".join(item.value for item in node.value))
                return [self._text(item, key) for item in node.value]
        self.places[key] = self._place(node)
        self.mistake(key, "must be a list of single values" if kind == tuple[str, ...] else "must be a single value")
        return None

    def _remember(self, kind: Any, key: str, place: str, written: str) -> None:
        self.places[key] = place
        if kind is not self.secret:
            self.written[key] = written

    def _text(self, node: yaml.ScalarNode, key: str) -> str:
        """The value of a scalar with each `${VAR}` replaced, in one pass; what is not set stays as it is."""
        if node.tag.startswith("!"):
            self.mistake(key, "is read as a YAML tag; put quotes around a value that begins with !")
        text = str(node.value)
        if any(name not in self.environ for name in _VARIABLE.findall(text)):
            self._unset.add(key)
            self.warnings.append(f"{key}: a ${{...}} in it is not set and stays as it is ({self._place(node)})")
        return _VARIABLE.sub(lambda match: self.environ.get(match[1], match[0]), text)

    def _entries(self, node: yaml.Node | None, key: str, known: list[str]) -> dict[str, yaml.Node]:
        """The known keys of a mapping; a null is as good as no key at all."""
        if node is None:
            return {}
        self.places[key] = self._place(node)
        if _is_null(node):
            return {}
        if not isinstance(node, yaml.MappingNode):
            self.mistake(key, f"{'' if key else 'the file '}must be a mapping of keys to values")
            return {}
        entries: dict[str, yaml.Node] = {}
        lines: dict[str, int] = {}
        for name_node, value in node.value:
            name = name_node.value if isinstance(name_node, yaml.ScalarNode) else "?"
            path = f"{key}.{name}".lstrip(".")
            if name not in known:
                self.places[path] = self._place(name_node)
                self.mistake(path, f"unknown key{self._suggestion(name, known, path)}")
            elif name in lines:
                self.places[path] = self._place(name_node)
                self.mistake(path, f"is given twice, first in line {lines[name]}")
            else:
                lines[name] = name_node.start_mark.line + 1
                if not _is_null(value):
                    entries[name] = value
        return entries

    def _suggestion(self, name: str, known: list[str], path: str) -> str:
        if name == "<<":
            return "; merge keys are not read, write the keys out"
        plain = re.sub(r"(?<=[a-z])([A-Z])", r"_\1", name).lower().replace("-", "_")
        section = path.removesuffix(name)
        candidates = {known_name: f"{section}{known_name}" for known_name in known}
        if not difflib.get_close_matches(plain, candidates, 1):
            candidates = {path.rpartition(".")[2]: path for path in self._keys_of(self.root)}
        nearest = difflib.get_close_matches(plain, candidates, 1)
        return f"; did you mean {candidates[nearest[0]]}?" if nearest else ""

    def _keys_of(self, cls: type[Any], above: str = "") -> Iterator[str]:
        for field in _keys(cls):
            key = f"{above}{field.name}"
            if self._is_section(field.type):
                yield from self._keys_of(field.type, f"{key}.")
            elif _is_list_of_sections(field.type):
                yield from self._keys_of(get_args(field.type)[0], f"{key}[].")
            else:
                yield key

    def _place(self, node: yaml.Node) -> str:
        return f"{self._file}:{node.start_mark.line + 1}"


def to_yaml(document: Mapping[str, Any]) -> str:
    """The document as YAML, keys in the order given."""
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, default_flow_style=False, width=1000)
    return text


def _compose(path: Path) -> yaml.Node | None:
    """The nodes of a YAML file; raises ValueError with the file's name, the line, and none of its text."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise ValueError(f"{path}: cannot be read: {exc.strerror}") from exc
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"{path}: is larger than {MAX_FILE_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise ValueError(f"{path}:{line}: is not UTF-8 text") from exc
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        raise ValueError(f"{path}:{line}: holds a character that YAML forbids, U+{int(exc.character):04X}") from exc
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = mark.line + 1 if mark else 1
        raise ValueError(f"{path}:{line}: is not valid YAML: {_problem(exc)}") from exc
    except RecursionError as exc:
        raise ValueError(f"{path}: is nested too deeply") from exc


def _problem(exc: yaml.MarkedYAMLError) -> str:
    """What YAML says is wrong, unless it would repeat a word of the file: that may be a password."""
    problem = exc.problem or exc.context or "?"
    if "alias" in problem or "anchor" in problem or "tag" in problem:
        return "a value that begins with * or & or ! needs quotes"
    return problem


def _keys(cls: type[Any]) -> list[Any]:
    return [field for field in attrs.fields(cls) if field.metadata.get("is_key", True)]


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _is_list_of_sections(kind: Any) -> bool:
    return any(attrs.has(argument) for argument in get_args(kind) if isinstance(argument, type))


def _upwards(key: str) -> Iterator[str]:
    """The key itself, then each section that it stands in, the file last."""
    while key:
        yield key
        key = re.sub(r"(\.[^.]*|\[[0-9]+\]|^[^.\[]+)$", "", key)
    yield ""


def _quote(written: str) -> str:
    cut = written if len(written) <= _QUOTED_CHARACTERS else f"{written[:_QUOTED_CHARACTERS]}..."
    return json.dumps(cut, ensure_ascii=False) if cut.isprintable() else json.dumps(cut)


def _kubernetes_hint(place: str, given: str | list[str]) -> str:
    """A service called `server` makes Kubernetes set SERVER_PORT=tcp://... in every pod beside it."""
    variable = place.removeprefix("env ")
    if variable == place or not str(given).startswith(("tcp://", "udp://")):
        return ""
    service = variable.removesuffix("_PORT").lower().replace("_", "-")
    remedy = "set enableServiceLinks: false in the pod, or give the variable a value in its spec"
    if not variable.startswith("DOCKYARD_"):
        remedy = f"set DOCKYARD_{variable}, which wins, or enableServiceLinks: false in the pod"
    return f'; Kubernetes sets this variable for a service called "{service}": {remedy}'
