"""The kinds of value that settings have, and how each is written as text.

`converter` reads a value from its text and shows it again; what it shows, it reads back. Secrets are shown as `***`.
"""

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
AuthType = Literal["anonymous", "basic", "bearer", "keychain"]


@attrs.frozen(repr=False, str=False)
class Secret:
    """A value that is sent to its host and shown nowhere."""

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
    """How each type of value is written: one hook to read it from text, one to show it."""
    hooks = cattrs.Converter()
    _register(hooks, Seconds, lambda text: parse_duration(text.strip()), format_duration)
    _register(hooks, Bytes, lambda text: parse_size(text.strip()), format_size)
    _register(hooks, ProxyUrl, str, hide_userinfo)
    _register(hooks, Secret, Secret, str)
    _register(hooks, Path, _parse_path, str)
    _register(hooks, int, lambda text: _parse_number(text.strip()), int)
    _register(hooks, bool, lambda text: _parse_truth(text.strip().lower()), bool)
    _register(hooks, tuple[str, ...], _parse_list, list)
    for words in (Level, Encoding, AuthType):
        _register(hooks, words, functools.partial(_parse_word, get_args(words)), str)
    return hooks


def _register(hooks: cattrs.Converter, kind: Any, parse: Callable[[Any], Any], form: Callable[[Any], Any]) -> None:
    """Hooks for exactly this type: left alone, cattrs looks through Annotated, and would call int() on "5.7"."""
    if isinstance(kind, type):
        hooks.register_structure_hook(kind, lambda text, _: parse(text))
        hooks.register_unstructure_hook(kind, form)
        return
    hooks.register_structure_hook_func(lambda other: bool(other == kind), lambda text, _: parse(text))
    hooks.register_unstructure_hook_func(lambda other: bool(other == kind), form)


def _parse_number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError("must be a whole number")
    return int(text)


def _parse_truth(text: str) -> bool:
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
        raise ValueError("begins with ~, and there is no home directory") from exc


def _parse_list(given: str | list[str]) -> tuple[str, ...]:
    """A list as it is; a single text, which is what a variable holds, cut at its commas."""
    items = given.split(",") if isinstance(given, str) else given
    return tuple(item.strip() for item in items if item.strip())


def _parse_word(words: tuple[str, ...], text: str) -> str:
    word = text.strip().lower()
    if word in words:
        return word
    if "keychain" in words:
        return "keychain"  # of auth.type, where every other word means this one
    raise ValueError(f"must be one of {', '.join(words)}")
