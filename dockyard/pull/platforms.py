"""Platforms, written `os/architecture[/variant]`, and which other platforms each can run. Pure.

The aliases and the order of variants are those of containerd (containerd/platforms, database.go and compare.go), which
Docker uses too: `arm` is `arm/v7`, `arm64` is `arm64/v8`, `amd64` is `amd64/v1`, and a machine also runs the variants
below its own. It does not run other architectures.
"""

import re
from collections.abc import Iterable
from typing import Final, Self

import attrs

_TEXT: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}(?:/[A-Za-z0-9_.-]{1,64}){1,2}", re.ASCII)
# Other names of architectures: the normalized name, and the variant that is implied.
_ALIASES: Final = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv6l": ("arm", "v6"),
}
_DEFAULT_VARIANT: Final = {"amd64": "v1", "arm64": "v8", "arm": "v7"}
_LOWEST_VARIANT: Final = {"amd64": 1, "arm64": 8, "arm": 5}
_NUMBERED: Final = re.compile(r"v?([0-9]{1,2})", re.ASCII)


@attrs.frozen
class Platform:
    """A normalized platform: in lower case, without aliases and without the default variant."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def of(cls, os: str, architecture: str, variant: str = "") -> Self:
        """Normalize an operating system, an architecture and a variant to a platform."""
        name, implied = _ALIASES.get(architecture.lower(), (architecture.lower(), ""))
        variant = variant.lower() or implied
        if name in _DEFAULT_VARIANT and (match := _NUMBERED.fullmatch(variant)):
            variant = f"v{int(match[1])}"
        return cls(os.lower(), name, "" if variant == _DEFAULT_VARIANT.get(name) else variant)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `os/architecture[/variant]`. Raises ValueError."""
        if not _TEXT.fullmatch(text):
            raise ValueError(f"not a platform such as linux/amd64 or linux/arm/v7: {text[:200]!a}")
        return cls.of(*text.split("/"))

    @property
    def is_unknown(self) -> bool:
        """True for the platform under which BuildKit lists attestations, which are not images."""
        return self.os == "unknown" and self.architecture == "unknown"

    def compatible(self) -> Iterable[Self]:
        """Yield the platforms whose images such a machine runs, best first: its own, then the lower variants."""
        yield self
        match = _NUMBERED.fullmatch(self.variant or _DEFAULT_VARIANT.get(self.architecture, ""))
        lowest = _LOWEST_VARIANT.get(self.architecture)
        if match is None or lowest is None:
            return
        for number in range(int(match[1]) - 1, lowest - 1, -1):
            yield self.of(self.os, self.architecture, f"v{number}")

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)
