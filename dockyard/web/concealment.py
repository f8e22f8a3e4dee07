"""What is looked up instead of a repository that a client must not learn about.

A response that is made up can differ from that of an unknown repository: by its status, which depends on the upstream,
by its bytes, and by its time. So a name is looked up that the upstream does not have. It is in the same namespace, and
nobody can know it; a digest is replaced too, so that no content fits.
"""

import hmac
from typing import TypeVar

import attrs

from dockyard.oci.reference import Digest, Name, Tag
from dockyard.routing import Target
from dockyard.web.queries import ReferrersQuery

NAME_CHARS = 32
_Parsed = TypeVar("_Parsed")


class Concealment:
    """Replaces names and references. The same ones are replaced by the same ones in all workers that have the `key`."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def replace_target(self, target: Target) -> Target:
        """Return a target whose last path component is another."""
        component = self._hash(f"name {target.name}")[:NAME_CHARS]
        name = Name(_replace_last(target.name.value, component))
        return attrs.evolve(target, repository=_replace_last(target.repository, component), name=name)

    def replace_reference(self, parsed: _Parsed) -> _Parsed:
        """Return another tag or digest, or a query for the referrers of another digest."""
        match parsed:
            case Digest():
                return type(parsed)(parsed.algorithm, self._hash(f"digest {parsed}", parsed.algorithm))
            case Tag():
                return type(parsed)(self._hash(f"tag {parsed}"))
            case ReferrersQuery():
                return attrs.evolve(parsed, subject=self.replace_reference(parsed.subject))
            case _:
                return parsed

    def _hash(self, text: str, algorithm: str = "sha256") -> str:
        return hmac.digest(self._key, text.encode(), algorithm).hex()


def _replace_last(path: str, component: str) -> str:
    before, slash, _ = path.rpartition("/")
    return f"{before}{slash}{component}"
