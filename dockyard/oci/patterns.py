"""Patterns for repository names, such as `docker.io/library/*` and `ghcr.io/my-org/**`.

In a pattern, `*` stands for any text within a component, and the component `**` for any number of components, also for
none. A pattern that begins with `docker.io/` matches no other registry, and `a/*` does not match `a/b/c`.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Final, Self

import attrs

from dockyard.errors import NameInvalid
from dockyard.oci.reference import MAX_NAME_CHARS, Name

ANY_TEXT: Final = "*"
ANY_COMPONENTS: Final = "**"
MAX_EXPANSIONS: Final = 4096

_DIGEST: Final = re.compile(r"@[a-z0-9]+:[0-9a-fA-F]*")
_TAG: Final = re.compile(r":[A-Za-z0-9_.*-]+")
_USERINFO: Final = re.compile(r"^[^/]*@(?=[^/]*/)")
_NO_NAME_CHARS: Final = "\0"  # stands for text of a name that is in no pattern


@attrs.frozen
class NamePattern:
    """A pattern for full names, by its components."""

    components: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a pattern. Raises ValueError for one that no repository name matches, with the remedy."""
        if remedy := _find_remedy(text):
            raise ValueError(f"matches no repository name: {remedy}")
        pattern = cls(tuple(text.split("/")))
        if not pattern._has_names():
            raise ValueError(
                "matches no repository name: names consist of lower-case letters, digits and single separators "
                f"(. _ -) between them, and have at most {MAX_NAME_CHARS} characters"
            )
        return pattern

    def matches(self, name: Name) -> bool:
        """Return whether a full name matches this pattern, in linear time for each component of the pattern."""
        return self.matches_components(name.components)

    def find_within(self, names: "NamePattern") -> Iterator["NamePattern"]:
        """Yield patterns that together match the names that match both this pattern and `names`.

        `names` has components without wildcards and the component `*`, and `**` only at its end.
        """
        found = dict.fromkeys(_intersect(self.components, names.components))
        yield from map(NamePattern, found)

    def is_covered_by(self, others: Sequence["NamePattern"]) -> bool:
        """Return whether each name that matches this pattern matches one of the others too.

        The answer is exact, except that it may be False for a covered pattern in two cases: when there are more than
        `MAX_EXPANSIONS` combinations to try, and when the others contain all letters and digits between wildcards, as
        in `*a*`, `*b*`, and so on.

        Text that is in no pattern takes the place of each wildcard: if another pattern matches that name, its wildcards
        match this text, and so any other text as well. `**` is replaced by each number of components up to one more
        than others have without wildcard `**`: of more, the `**` of another pattern matches one, and so any number.
        """
        depth = max((len(other.components) - other.components.count(ANY_COMPONENTS) for other in others), default=0)
        counts = range(depth + 1, -1, -1)
        expandable = self.components.count(ANY_COMPONENTS)
        if not others or len(counts) ** expandable > MAX_EXPANSIONS:
            return False
        return all(
            any(other.matches_components(expanded) for other in others)
            for chosen in itertools.product(counts, repeat=expandable)
            if (expanded := self._expand(chosen, _NO_NAME_CHARS))
        )

    def matches_components(self, components: Sequence[str]) -> bool:
        """Return whether a name that consists of these components matches this pattern."""
        index, position = 0, 0
        after_wildcard, matched = -1, 0  # where to go on after a mismatch: `**` then matches one component more
        while position < len(components):
            if index < len(self.components) and self.components[index] == ANY_COMPONENTS:
                index += 1
                after_wildcard, matched = index, position
            elif index < len(self.components) and matches_text(self.components[index], components[position]):
                index += 1
                position += 1
            elif after_wildcard >= 0:
                matched += 1
                index, position = after_wildcard, matched
            else:
                return False
        return all(component == ANY_COMPONENTS for component in self.components[index:])

    def _expand(self, counts: Sequence[int], text: str) -> tuple[str, ...]:
        """Return the components of a name, with `text` for each `*`, and for each `**` a number of components."""
        remaining = iter(counts)
        expanded: list[str] = []
        for component in self.components:
            if component == ANY_COMPONENTS:
                expanded += [text] * next(remaining)
            else:
                expanded.append(component.replace(ANY_TEXT, text))
        return tuple(expanded)

    def _has_names(self) -> bool:
        """Return whether a valid name matches: that with a letter for each `*` and nothing for `**` is, if any is."""
        counts = [0] * self.components.count(ANY_COMPONENTS)
        try:
            Name.parse("/".join(self._expand(counts, "x") or ("x",)))
        except NameInvalid:
            return False
        return True

    def __str__(self) -> str:
        return "/".join(self.components)


def matches_text(pattern: str, text: str) -> bool:
    """Return whether a text matches a pattern in which `*` stands for any text, in linear time for each `*`."""
    first, *chunks = pattern.split(ANY_TEXT)
    if not chunks:
        return text == first
    last = chunks.pop()
    end = len(text) - len(last)
    if end < len(first) or not text.startswith(first) or not text.endswith(last):
        return False
    position = len(first)
    for chunk in chunks:
        found = text.find(chunk, position, end)
        if found < 0:
            return False
        position = found + len(chunk)
    return True


def _intersect(pattern: tuple[str, ...], names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if names == (ANY_COMPONENTS,):
        yield pattern
    elif not names:
        if all(component == ANY_COMPONENTS for component in pattern):
            yield ()
    elif pattern:
        if pattern[0] == ANY_COMPONENTS:
            yield from _intersect(pattern[1:], names)
            rests = _intersect(pattern, names[1:])
            common = names[0]
        elif names[0] == ANY_TEXT or matches_text(pattern[0], names[0]):
            rests = _intersect(pattern[1:], names[1:])
            common = pattern[0] if names[0] == ANY_TEXT else names[0]
        else:
            return
        yield from ((common, *rest) for rest in rests)


def _find_remedy(text: str) -> str:
    """What to write instead of a pattern that is not valid as it is written; empty if nothing is wrong."""
    _, separator, rest = text.partition("://")
    if not text:
        return "write ** for all repositories"
    if separator:
        return f"it begins with a scheme: write {_USERINFO.sub('', rest)}"
    if text.startswith("/"):
        return f"it begins with /: write {text.lstrip('/')}"
    if text.endswith("/"):
        return f"it ends with /: write {text.rstrip('/')}, or {text.rstrip('/')}/** for all repositories below it"
    if (repository := _remove_reference(text)) != text:
        return f"a rule is for a repository, with all its tags and digests: write {repository}"
    if ":" in text:
        return "write it without a port: it begins with the prefix of an upstream"
    if text != text.lower():
        return f"names have no capital letters: write {text.lower()}"
    return _find_wildcard_remedy(text)


def _remove_reference(text: str) -> str:
    *above, last = _DIGEST.sub("", text).split("/")
    return "/".join([*above, _TAG.sub("", last)])


def _find_wildcard_remedy(text: str) -> str:
    components = text.split("/")
    if "" in components:
        return "write one / between its parts"
    if any(ANY_COMPONENTS in component and component != ANY_COMPONENTS for component in components):
        return "** is the whole text between two /, as in ghcr.io/my-org/**; within a part, write *"
    if unknown := sorted(set(re.findall(r"[^a-z0-9._/*-]", text))):
        return f"{' '.join(map(ascii, unknown))} cannot be in a name; the only wildcards are * and **"
    return ""
