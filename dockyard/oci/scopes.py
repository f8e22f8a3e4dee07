"""Scopes of a token: what is requested for pulling from a repository, given what the registry's challenge names.

The own scope (`repository:<name>:pull`) comes first, the scopes of the challenge after it: some registries know the
repository by another name. Of these only pulling is ever requested:

- `repository:<name>:<actions>` is reduced to `pull`, and ignored without `pull` or `*`; so is any other resource type.
- With credentials, <name> must end with the own name, or the own name with it (whole components). A registry could
  otherwise ask for a token that reads another repository of this account, elsewhere, and receive it.
- Without credentials any repository may be named, and scopes without structure (`aws`) are requested too: anyone can
  get such a token.

See "Token Scope Documentation" of the distribution project.
"""

import re
from typing import Final

MAX_SCOPES: Final = 4  # of one challenge

_REPOSITORY: Final = re.compile(
    r"(?P<type>repository(?:\([a-z0-9]{1,32}\))?):(?P<name>[A-Za-z0-9][A-Za-z0-9._:/-]{0,254}):(?P<actions>[a-z*,]{1,64})"
)
_UNSTRUCTURED: Final = re.compile(r"[A-Za-z0-9._/-]{1,64}")

Scopes = tuple[str, ...]


def scope_sets(repository: str, named: str, *, is_anonymous: bool) -> tuple[Scopes, ...]:
    """The sets of scopes to request a token with, the next one if there is no token for one, or it is refused.

    `named` is the `scope` parameter of the challenge. Without a repository, which a redirect may lead to, the scopes
    of the challenge are the only ones.
    """
    own = (f"repository:{repository}:pull",) if repository else ()
    others = _pull_scopes(repository, named, is_anonymous=is_anonymous)
    others = tuple(scope for scope in others if scope not in own)
    if not own or not others:
        return (own or others,)
    return ((*own, *others), own, others)


def _pull_scopes(repository: str, named: str, *, is_anonymous: bool) -> Scopes:
    found: dict[str, None] = {}
    for scope in named.split(" "):
        if (match := _REPOSITORY.fullmatch(scope)) is not None:
            may_pull = not {"pull", "*"}.isdisjoint(match["actions"].split(","))
            if may_pull and (is_anonymous or _is_same_repository(match["name"], repository)):
                found[f"{match['type']}:{match['name']}:pull"] = None
        elif is_anonymous and _UNSTRUCTURED.fullmatch(scope):
            found[scope] = None
    return tuple(found)[:MAX_SCOPES]


def _is_same_repository(name: str, own: str) -> bool:
    return name == own or name.endswith(f"/{own}") or own.endswith(f"/{name}")
