"""The types of settings, and how a value of each type is written as text.

`converter` parses a value from text and formats it again; formatted values parse to the same value, except secrets,
which are formatted as `***`.
"""

import difflib
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import attrs
import cattrs

from dockyard.config.hosts import hide_userinfo
from dockyard.config.units import format_duration, format_size, parse_duration, parse_size

Seconds = Annotated[float, "written as a duration"]
Bytes = Annotated[int, "written as a size"]
ProxyUrl = Annotated[str, "may hold a password"]
Level = Literal["debug", "info", "warn", "error"]
Encoding = Literal["console", "json"]
Verify = Literal["always", "start", "never"]
AuthType = Literal["anonymous", "basic", "bearer", "keychain"]
Access = Literal["rules", "upstream"]
LazyBackground = Literal["download", "on_demand"]
Challenge = Literal["basic", "bearer"]
ProxyHeader = Literal["x-forwarded-for", "forwarded"]


@attrs.frozen(repr=False, str=False)
class Secret:
    """A password or token. `str` and `repr` hide it; `reveal` returns it for the request that sends it."""

    _value: str = ""

    def reveal(self) -> str:
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return f"Secret({str(self)!r})"

    def __str__(self) -> str:
        return "***" if self._value else ""


def converter() -> cattrs.Converter:
    """A cattrs converter with a hook to parse and a hook to format each type of setting."""
    hooks = cattrs.Converter()
    _register(hooks, Seconds, lambda text: parse_duration(text.strip()), format_duration)
    _register(hooks, Bytes, lambda text: parse_size(text.strip()), format_size)
    _register(hooks, ProxyUrl, str, hide_userinfo)
    _register(hooks, Secret, Secret, str)
    _register(hooks, Path, _parse_path, str)
    _register(hooks, int, lambda text: _parse_int(text.strip()), int)
    _register(hooks, bool, lambda text: _parse_bool(text.strip().lower()), bool)
    _register(hooks, tuple[str, ...], _parse_list, list)
    for choices in (Level, Encoding, Verify, Access, Challenge, LazyBackground, ProxyHeader):
        _register(hooks, choices, functools.partial(_parse_choice, get_args(choices)), str)
    _register(hooks, AuthType, _parse_auth_type, str)
    return hooks


def _register(hooks: cattrs.Converter, kind: Any, parse: Callable[[Any], Any], format_: Callable[[Any], Any]) -> None:
    """Register hooks for exactly this type. The hooks of cattrs would ignore Annotated and call int() on "5.7"."""
    if isinstance(kind, type):
        hooks.register_structure_hook(kind, lambda text, _: parse(text))
        hooks.register_unstructure_hook(kind, format_)
        return
    hooks.register_structure_hook_func(lambda other: bool(other == kind), lambda text, _: parse(text))
    hooks.register_unstructure_hook_func(lambda other: bool(other == kind), format_)


def _parse_int(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise ValueError("must be a whole number")
    return int(text)


def _parse_bool(text: str) -> bool:
    if text in {"true", "yes", "on", "1"}:
        return True
    if text in {"false", "no", "off", "0"}:
        return False
    raise ValueError("must be true or false")


def _parse_path(text: str) -> Path:
    if not text:
        raise ValueError("must not be empty")
    try:
        return Path(text).expanduser()
    except RuntimeError as exc:
        raise ValueError("begins with ~, but the home directory is unknown; write the whole path") from exc


def _parse_list(given: str | list[str]) -> tuple[str, ...]:
    """Return a list as it is. A text, such as the value of an environment variable, is split at its commas."""
    items = given.split(",") if isinstance(given, str) else given
    return tuple(item.strip() for item in items if item.strip())


def _parse_choice(choices: tuple[str, ...], text: str) -> str:
    choice = text.strip().lower()
    if choice not in choices:
        nearest = difflib.get_close_matches(choice, choices, 1)
        raise ValueError(f"must be one of {', '.join(choices)}" + (f"; did you mean {nearest[0]}?" if nearest else ""))
    return choice


def _parse_auth_type(text: str) -> str:
    """Return the type of authentication. Every unknown type, and an empty one, means the Docker keychain."""
    auth_type = text.strip().lower()
    return auth_type if auth_type in get_args(AuthType) else "keychain"
