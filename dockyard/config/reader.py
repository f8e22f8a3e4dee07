"""Reads one YAML file, the environment and options of the command line into a tree of attrs classes.

The classes decide which keys exist; any other key in the file is an error. Every value is a text here, whatever type
YAML would infer (`password: 0123` is not 83), until the type of its field parses it. Each key may also be set by an
environment variable, which takes precedence, unless it is in a list. An option takes precedence over both.

An error does not stop the reading: it is recorded with its key and its location, and the default is used. It quotes the
value as it is written, never what `${VAR}` stands for, and never a secret.
"""

import difflib
import errno
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Generic, Literal, Protocol, TypeVar, get_args, get_origin

import attrs
import yaml

from dockyard.config.access import explain

MAX_FILE_BYTES = 2**20
MAX_QUOTED_CHARS = 80
NOT_A_KEY = {"is_key": False}
"""Metadata of a field that cannot be set."""
NEVER_EMPTY = {"is_never_empty": True}
"""Metadata of a text that has no empty value. Types other than text, secret and list never have one."""
NO_BLANKS = {"has_no_blanks": True}
"""Metadata of a list that means something else when it is empty, so that an empty element must not make it so."""
MUST_HAVE_VALUE = {"must_have_value": True}
"""Metadata of a key that may be left out, but not be written without a value: the default would permit more."""
DEFAULT_TEXT = "default_text"
"""Key in the metadata of a field whose default depends on the environment: how the reference describes it."""

Tree = TypeVar("Tree")

_FILE_HINTS = {
    errno.ENOENT: "; name a YAML file that exists with `-c`, or none for the defaults",
    errno.EISDIR: "; name a file in it with `-c`, such as config.yaml",
}
_YAML_HINTS = (
    ("'\\t'", "indent with spaces, not with tabs"),
    ("cannot start any token", "put quotes around a value that begins with this character"),
    ("end of stream", "a quote is not closed"),
    ("flow sequence", "a bracket [ is not closed"),
    ("flow mapping", "a brace { is not closed"),
    ("node content", "a value is missing, or a bracket is not closed, or a value that begins with : needs quotes"),
    ("another document", "the file must be one document, without --- between its parts"),
    ("mapping values are not allowed", "put quotes around a value that contains ': ', or correct the indentation"),
    ("could not find expected ':'", "write 'key: value', with a space after the colon"),
    ("block end", "keys of one section must have the same indentation"),
)
_KUBERNETES_VARIABLE = re.compile(
    r".+(_SERVICE_HOST|_SERVICE_PORT|_SERVICE_PORT_.+|_PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_KUBERNETES_URLS = ("tcp://", "udp://", "sctp://")


class SettingsFile(Protocol):
    """A YAML file, such as a Path. `str` is its name in errors."""

    def open(self, mode: Literal["rb"], /) -> BinaryIO: ...


@attrs.frozen
class Option:
    """An option of the command line that sets a key, such as `--port`, and its text."""

    name: str
    text: str


_VARIABLE = re.compile(r"\$\{([^}]+)\}")
_UNPRINTABLE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")


@attrs.define
class SettingsReader(Generic[Tree]):
    """Reads a tree with the class `root`, once.

    `structure(text, type)` returns a value or raises ValueError; for a tuple it gets a text or a list of texts.
    Values of the type `secret` are never quoted.
    """

    root: type[Tree]
    environ: Mapping[str, str]
    structure: Callable[[Any, Any], Any]
    secret: type
    options: Mapping[str, Option] = attrs.field(factory=dict)
    """By key."""
    errors: list[str] = attrs.field(factory=list)
    warnings: list[str] = attrs.field(factory=list)
    raw_values: dict[str, str] = attrs.field(factory=dict, repr=False)
    """By key: the value as it is written, with `${VAR}` not replaced. Secrets are left out."""
    locations: dict[str, str] = attrs.field(factory=dict)
    """By key or section: where it is set, as `config.yaml:12`, `env SERVER_PORT` or `option --port`."""
    _keys_with_error: set[str] = attrs.field(factory=set)
    _blanks: set[str] = attrs.field(factory=set)
    _keys_with_unset_variable: set[str] = attrs.field(factory=set)
    _referenced: set[str] = attrs.field(factory=set)
    _file: str = ""

    def read(self, path: SettingsFile | None) -> Tree:
        """Return the whole tree, also when there are errors. Without a path no file is read."""
        node = None
        if path is not None:
            self._file = str(path)
            try:
                node = _compose(path)
            except ValueError as exc:
                self.errors.append(str(exc))
                self._keys_with_error.add("")
            else:
                if node is None or (_is_null(node) and not node.value):
                    self.warnings.append(f"{path}: has no settings in it; the defaults and the environment are used")
        tree: Tree = self._read_section(self.root, node, "", in_list=False)
        return tree

    @property
    def keys_with_error(self) -> frozenset[str]:
        """Keys and sections; an empty text is the whole file."""
        return frozenset(self._keys_with_error)

    def add_error(self, key: str, message: str) -> None:
        """Record an error of a key. Only the first of a key counts: after it, the value is the default."""
        if key in self._keys_with_error:
            return
        self._keys_with_error.add(key)
        raw = self.raw_values.get(key, "")
        quoted = f" = {_quote(raw)}" if raw and "@" not in raw else ""  # may be user:password@host
        location = next((self.locations[above] for above in _key_and_parents(key) if above in self.locations), "")
        subject = f"{_printable(key)}{quoted}: " if key else ""
        if _VARIABLE.search(raw):
            message = message.partition(": write ")[0]  # which would repeat what the variable stands for
        hint = "; it refers to a variable that is not set" if key in self._keys_with_unset_variable else ""
        self.errors.append(f"{subject}{message}{hint}" + (f" ({location})" if location else ""))

    def locate(self, key: str, variable: str) -> None:
        """Record that a key without a value of its own got that of a variable that other programs use."""
        if variable:
            self._record(str, key, f"env {variable}", self.environ[variable])

    def _read_section(self, cls: type[Any], node: yaml.Node | None, key: str, *, in_list: bool) -> Any:
        fields = fields_of(cls)
        entries = self._read_mapping(node, key, [field.name for field in fields])
        values: dict[str, Any] = {}
        for field in fields:
            path = f"{key}.{field.name}".lstrip(".")
            child = entries.get(field.name)
            if self._is_section(field.type):
                values[field.name] = self._read_section(field.type, child, path, in_list=in_list)
            elif (element := section_in_list(field.type)) is not None:
                if child is not None:
                    values[field.name] = self._read_sections(element, child, path)
            elif (given := self._read_value(field, child, path, in_list=in_list)) is not None:
                self._parse_into(values, field, path, given)
            if path in self._blanks and "must_have_value" in field.metadata:
                self.add_error(path, "is empty: write a value, or remove the key")
            if field.default is attrs.NOTHING and field.name not in values:
                if key not in self._keys_with_error:  # else nothing of the section can be read
                    self.add_error(path, "is required")
                self._keys_with_error.add(path)
                values[field.name] = ""
        return cls(**values)

    def _is_section(self, kind: Any) -> bool:
        return isinstance(kind, type) and attrs.has(kind) and kind is not self.secret

    def _read_sections(self, cls: type[Any], node: yaml.Node, key: str) -> tuple[Any, ...]:
        self.locations[key] = self._location(node)
        if not isinstance(node, yaml.SequenceNode):
            self.add_error(key, "must be a list: begin each element with '- ', as in '- prefix: ghcr.io'")
            return ()
        return tuple(
            self._read_section(cls, child, f"{key}[{index}]", in_list=True) for index, child in enumerate(node.value)
        )

    def _parse_into(self, values: dict[str, Any], field: Any, key: str, given: str | list[str]) -> None:
        if any(_UNPRINTABLE.search(text) for text in ([given] if isinstance(given, str) else given)):
            self.add_error(key, f"contains a line break, a control character or broken UTF-8{_line_break_hint(given)}")
            return
        items = given.split(",") if isinstance(given, str) else given
        if "has_no_blanks" in field.metadata and not all(item.strip() for item in items):
            self.add_error(
                key,
                "has an empty element: remove it, or set the variable that it consists of; no elements would mean all",
            )
            return
        try:
            values[field.name] = self.structure(given, field.type)
        except ValueError as exc:
            example = f", such as {field.default}" if field.type is int else ""
            self.add_error(key, f"{exc}{example}{_kubernetes_hint(self.locations[key], given)}")

    def _read_value(self, field: Any, node: yaml.Node | None, key: str, *, in_list: bool) -> str | list[str] | None:
        """Return the text of one key, from an option, else the environment, else the file; None when none has it.

        An empty text is no value for most types, and then the same as no text.
        """
        kind, may_be_empty = field.type, self._may_be_empty(field)
        if option := self.options.get(key):
            self._record(kind, key, f"option {option.name}", option.text)
            return option.text
        if not in_list:
            for variable in environment_variables(key):
                if self.environ.get(variable, "").strip() or (variable in self.environ and may_be_empty):
                    self._record(kind, key, f"env {variable}", self.environ[variable])
                    return self.environ[variable]
        match node:
            case None:
                return None
            case yaml.ScalarNode():
                text = self._expand(node, key)
                if not text.strip() and not may_be_empty:
                    self._blanks.add(key)
                    return None
                self._record(kind, key, self._location(node), str(node.value))
                return text
            case yaml.SequenceNode() if kind == tuple[str, ...] and all(
                isinstance(item, yaml.ScalarNode) for item in node.value
            ):
                self._record(kind, key, self._location(node), ", ".join(item.value for item in node.value))
                items = [(item, self._expand(item, key)) for item in node.value]
                filled = (item for item, text in items if text.strip())  # empty ones are left out, and not counted
                for index, item in enumerate(filled):
                    self._record(kind, f"{key}[{index}]", self._location(item), str(item.value))
                return [text for _, text in items]
        self.locations[key] = self._location(node)
        example = (
            "a list of single values, such as [a, b]"
            if kind == tuple[str, ...]
            else f"a single value, such as {field.name}: ..."
        )
        self.add_error(key, f"must be {example}")
        return None

    def _may_be_empty(self, field: Any) -> bool:
        kind = get_args(field.type)[0] if get_origin(field.type) is Annotated else field.type
        return kind in (str, tuple[str, ...], self.secret) and "is_never_empty" not in field.metadata

    def _record(self, kind: Any, key: str, location: str, raw: str) -> None:
        self.locations[key] = location
        if kind is not self.secret:
            self.raw_values[key] = raw

    def _expand(self, node: yaml.ScalarNode, key: str) -> str:
        """Return the value of a scalar with each `${VAR}` replaced once; variables that are not set stay as written."""
        if node.tag.startswith("!"):
            self.add_error(key, "is read as a YAML tag; put quotes around a value that begins with !")
        text = str(node.value)
        self._referenced.update(_VARIABLE.findall(text))
        if any(name not in self.environ for name in _VARIABLE.findall(text)):
            self._keys_with_unset_variable.add(key)
            variable = _describe_variable(text)
            self.warnings.append(
                f"{key}: refers to {variable}, which is not set: set it for the server, or correct its name; until "
                f"then it is used as written ({self._location(node)})"
            )
        return _VARIABLE.sub(lambda match: self.environ.get(match[1], match[0]), text)

    def _read_mapping(self, node: yaml.Node | None, key: str, known: list[str]) -> dict[str, yaml.Node]:
        """Return the known keys of a mapping. A key whose value is null is left out."""
        if node is None:
            return {}
        self.locations[key] = self._location(node)
        if _is_null(node):
            return {}
        if not isinstance(node, yaml.MappingNode):
            self.add_error(key, _describe_mapping(node, key, known))
            return {}
        entries: dict[str, yaml.Node] = {}
        lines: dict[str, int] = {}
        for name_node, value in node.value:
            name = name_node.value if isinstance(name_node, yaml.ScalarNode) else "?"
            path = f"{key}.{name}".lstrip(".")
            if name not in known:
                self.locations[path] = self._location(name_node)
                self.add_error(path, f"unknown key{self._suggest(name, known, path)}")
            elif name in lines:
                self.locations[path] = self._location(name_node)
                self.add_error(path, f"is set twice, first in line {lines[name]}")
            else:
                lines[name] = name_node.start_mark.line + 1
                if _is_null(value):
                    self._blanks.add(path)
                else:
                    entries[name] = value
        return entries

    def _suggest(self, name: str, known: list[str], path: str) -> str:
        if name == "<<":
            return "; merge keys are not supported, write the keys out"
        snake_case = re.sub(r"(?<=[a-z])([A-Z])", r"_\1", name).lower().replace("-", "_")
        section = path.removesuffix(name)
        candidates = {known_name: f"{section}{known_name}" for known_name in known}
        if not difflib.get_close_matches(snake_case, candidates, 1):
            candidates = {path.rpartition(".")[2]: path for path in self._all_keys(self.root)}
        nearest = difflib.get_close_matches(snake_case, candidates, 1)
        return f"; did you mean {candidates[nearest[0]]}?" if nearest else "; `dockyard config` prints all keys"

    def _all_keys(self, cls: type[Any], above: str = "") -> Iterator[str]:
        for field in fields_of(cls):
            key = f"{above}{field.name}"
            if self._is_section(field.type):
                yield from self._all_keys(field.type, f"{key}.")
            elif (element := section_in_list(field.type)) is not None:
                yield from self._all_keys(element, f"{key}[].")
            else:
                yield key

    def find_unknown_variables(self, prefix: str, others: Collection[str]) -> Iterator[str]:
        """Yield a warning for each variable with this prefix that sets nothing; `others` are known otherwise.

        Those that the file refers to are known, and so are those that Kubernetes sets for a service.
        """
        all_keys = list(self._all_keys(self.root))
        keys = [key for key in all_keys if "[" not in key]
        lists = {key.partition("[")[0] for key in all_keys if "[" in key}
        in_lists = {environment_variables(key)[0]: key for key in lists}
        known = [variable for key in keys for variable in environment_variables(key) if variable.startswith(prefix)]
        for name, value in self.environ.items():
            is_ours = name.upper().startswith(prefix) and name not in {*known, *others, *self._referenced}
            if not is_ours or _is_of_kubernetes_service(name, value):
                continue
            same_end = [variable for variable in known if variable.endswith(name.upper().removeprefix(prefix[:-1]))]
            nearest = same_end or difflib.get_close_matches(name.upper(), [*known, *others], 1, 0.7)
            if of_list := next((key for variable, key in in_lists.items() if name.upper().startswith(variable)), ""):
                hint = f"; {of_list} can be set in the file only, where a value may be ${{NAME}}"
            else:
                hint = f"; did you mean {nearest[0]}?" if nearest else ""
            yield f"the environment variable {name} is unknown and has no effect{hint}"

    def _location(self, node: yaml.Node) -> str:
        return f"{self._file}:{node.start_mark.line + 1}"


def fields_of(cls: type[Any]) -> list[Any]:
    """The attrs fields of a section that are keys."""
    return [field for field in attrs.fields(cls) if field.metadata.get("is_key", True)]


def section_in_list(kind: Any) -> type[Any] | None:
    """The class of the elements of a list of sections; None for any other type."""
    return next((element for element in get_args(kind) if isinstance(element, type) and attrs.has(element)), None)


def environment_variables(key: str) -> tuple[str, str]:
    """The variables that set a key, the one that takes precedence first."""
    name = key.upper().replace(".", "_")
    return f"DOCKYARD_{name}", name


def to_yaml(document: Mapping[str, Any]) -> str:
    """The document as YAML, keys in the order given."""
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, default_flow_style=False, width=1000)
    return text


def _compose(path: SettingsFile) -> yaml.Node | None:
    """Parse a YAML file into nodes. Raises ValueError with the file's name and the line, without any of its text."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        hint = _FILE_HINTS.get(exc.errno or 0, "")
        reason = explain(exc, path) if isinstance(path, Path) else exc.strerror
        raise ValueError(f"{path}: cannot be read: {reason}{hint}") from exc
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"{path}: is larger than {MAX_FILE_BYTES} bytes: this is not a file with settings")
    try:
        text = data.decode("utf-8-sig")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise ValueError(f"{path}:{line}: is not UTF-8 text{_encoding_hint(data)}") from exc
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        character = f"U+{int(exc.character):04X}"
        raise ValueError(
            f"{path}:{line}: contains a character that is not allowed in YAML, {character}{_encoding_hint(data)}"
        ) from exc
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = mark.line + 1 if mark else 1
        raise ValueError(f"{path}:{line}: is not valid YAML: {_describe(exc)}") from exc
    except RecursionError as exc:
        raise ValueError(f"{path}: is nested too deeply") from exc


def _encoding_hint(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or data[0:4:2] == b"\0\0" or data[1:4:2] == b"\0\0":
        return "; it looks like UTF-16: save it as UTF-8"
    return "; it is a binary file, not YAML" if b"\0" in data else "; save it as UTF-8"


def _describe(exc: yaml.MarkedYAMLError) -> str:
    """The message of the YAML parser with a hint, unless it repeats text of the file, which may be a password."""
    problem = exc.problem or exc.context or "syntax error"
    if "alias" in problem or "anchor" in problem or "tag" in problem:
        return "put quotes around a value that begins with *, & or !"
    return problem + next((f"; {hint}" for part, hint in _YAML_HINTS if part in f"{exc.context} {problem}"), "")


def _describe_mapping(node: yaml.Node, key: str, known: list[str]) -> str:
    """What is wrong with a section that is not a mapping, without its text."""
    example = f"{known[0]}: ..." if key else "server: {port: 5000}"
    subject = "" if key else "the file "
    if isinstance(node, yaml.SequenceNode):
        return f"{subject}must be a mapping of keys to values, such as '{example}', not a list: remove the '- '"
    is_unspaced = re.match(r"[a-z_]+:\S", str(node.value)) is not None
    hint = "; write a space after the colon" if is_unspaced else ""
    return f"{subject}must be a mapping of keys to values, such as '{example}'{hint}"


def _describe_variable(text: str) -> str:
    """The variable that a value consists of. Of a longer value nothing is repeated: it may be a password."""
    match = _VARIABLE.fullmatch(text)
    is_name = match is not None and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", match[1])
    return f"the environment variable {match[1]}" if match and is_name else "an environment variable"


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _key_and_parents(key: str) -> Iterator[str]:
    """Yield the key, then each section that contains it, the whole file (an empty text) last."""
    while key:
        yield key
        key = re.sub(r"(\.[^.]*|\[[0-9]+\]|^[^.\[]+)$", "", key)
    yield ""


def _quote(raw: str) -> str:
    cut = _shorten(raw)
    return json.dumps(cut, ensure_ascii=False) if cut.isprintable() else json.dumps(cut)


def _printable(key: str) -> str:
    """A key, which in a file of another kind may be anything."""
    return _shorten(key) if key.isprintable() else json.dumps(_shorten(key))


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_QUOTED_CHARS else f"{text[:MAX_QUOTED_CHARS]}..."


def _kubernetes_hint(location: str, given: str | list[str]) -> str:
    """The remedy when Kubernetes has set the variable: a service `server` sets SERVER_PORT=tcp://... in all pods."""
    variable = location.removeprefix("env ")
    if variable == location or not str(given).startswith(_KUBERNETES_URLS):
        return ""
    service = variable.removesuffix("_PORT").lower().replace("_", "-")
    remedy = "set enableServiceLinks: false in the pod, or set the variable in the pod spec"
    if not variable.startswith("DOCKYARD_"):
        remedy = f"set DOCKYARD_{variable}, which takes precedence, or enableServiceLinks: false in the pod"
    return f'; Kubernetes sets this variable for a service called "{service}": {remedy}'


def _is_of_kubernetes_service(name: str, value: str) -> bool:
    """Whether Kubernetes sets this variable in all pods for a service, such as DOCKYARD_PORT for `dockyard`."""
    is_url = name.endswith("_PORT") and value.startswith(_KUBERNETES_URLS)
    return is_url or _KUBERNETES_VARIABLE.fullmatch(name) is not None


def _line_break_hint(given: str | list[str]) -> str:
    """How to avoid the line break that a shell adds to the end of a secret."""
    is_last = isinstance(given, str) and _UNPRINTABLE.search(given.rstrip("\r\n")) is None
    return ": it ends with a line break; write it without one (printf instead of echo)" if is_last else ""
