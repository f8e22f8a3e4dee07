"""Decides by `access.rules` who may pull what. Pure.

The first rule that matches client, action and repository decides. Without a match, a request is denied, except for the
status of the server. Without rules, everything is allowed.
"""

import enum
import functools
from collections.abc import Sequence
from typing import Final, Self

import attrs

from dockyard.access.principals import Principal, Source
from dockyard.config.settings import AccessRule, AccessSettings, Group, Upstream
from dockyard.config.who import ClientKind, Clients
from dockyard.oci.patterns import ANY_COMPONENTS, NamePattern
from dockyard.oci.reference import Name

MAX_CACHED_DECISIONS: Final = 4096
MAX_CACHED_CHARS: Final = 512

_ALL_NAMES: Final = NamePattern((ANY_COMPONENTS,))


class Action(enum.StrEnum):
    """What a request is for: `actions` of rules."""

    PULL = "pull"
    LIST = "list"
    STATUS = "status"


DEFAULT_ACTIONS: Final = frozenset({Action.PULL, Action.LIST})


@attrs.frozen
class Decision:
    """Whether a request is allowed.

    `rule` is the rule that decided, such as `rules[2]`; `default` if none matched, `none` if there are no rules.
    `reason` is the text of that rule for a client that is denied; it may be empty. `is_hidden`: the client must not
    learn that the repository exists.
    """

    is_allowed: bool
    rule: str
    reason: str = ""
    is_hidden: bool = False


_NO_RULES: Final = Decision(is_allowed=True, rule="none")
_DENIED: Final = Decision(is_allowed=False, rule="default")
_STATUS_ALLOWED: Final = Decision(is_allowed=True, rule="default")


@attrs.frozen
class Rule:
    """A rule with its values parsed. Without `who` it is for all clients."""

    label: str
    is_allowing: bool
    repositories: tuple[NamePattern, ...]
    who: tuple[Clients, ...]
    actions: frozenset[Action]
    reason: str
    is_hiding: bool

    @classmethod
    def parse(cls, index: int, rule: AccessRule) -> Self:
        """Parse a rule of the settings. Raises ValueError."""
        return cls(
            f"rules[{index}]",
            rule.allow,
            tuple(map(NamePattern.parse, rule.repositories)) or (_ALL_NAMES,),
            tuple(map(Clients.parse, rule.who)),
            frozenset(map(Action, rule.actions)) or DEFAULT_ACTIONS,
            rule.reason,
            rule.hide,
        )

    def is_for(self, principal: Principal) -> bool:
        """Return whether a client is in `who`."""
        return not self.who or any(_is_in(principal, clients, is_allowing=self.is_allowing) for clients in self.who)

    def is_for_name(self, name: Name | None) -> bool:
        """Return whether a repository, or the status if there is none, is in `repositories`."""
        return name is None or any(pattern.matches(name) for pattern in self.repositories)


class Rules:
    """The rules of the settings, which must have no errors. `upstreams` are those that names can begin with."""

    def __init__(self, settings: AccessSettings, upstreams: Sequence[Upstream] = ()) -> None:
        self._rules = [Rule.parse(index, rule) for index, rule in enumerate(settings.rules)]
        self._names = {upstream.prefix: upstream.names for upstream in upstreams}
        self._decide_cached = functools.lru_cache(MAX_CACHED_DECISIONS)(self._decide)
        self._may_pull_cached = functools.lru_cache(MAX_CACHED_DECISIONS)(self._may_pull)

    @property
    def restricts(self) -> bool:
        """Whether there are rules."""
        return bool(self._rules)

    def decide(self, principal: Principal, action: Action, name: Name | None) -> Decision:
        """Return whether a client may do something with a repository, by its normalized full name.

        The name is None for `Action.STATUS`. Raises ValueError if it is for another action.
        """
        if not self._rules:
            return _NO_RULES
        size = _size(principal) + len(name.value if name else "")
        return (self._decide_cached if size <= MAX_CACHED_CHARS else self._decide)(principal, action, name)

    def may_pull_something(self, principal: Principal) -> bool:
        """Return whether there is a name that a client may pull: with known upstreams, a name of one of them."""
        return any(self.may_pull_below(principal, prefix) for prefix in self._names or [""])

    def may_pull_below(self, principal: Principal, prefix: str) -> bool:
        """Return whether there is a name of the upstream with this prefix that a client may pull."""
        if not self._rules:
            return True
        size = _size(principal) + len(prefix)
        return (self._may_pull_cached if size <= MAX_CACHED_CHARS else self._may_pull)(principal, prefix)

    def _decide(self, principal: Principal, action: Action, name: Name | None) -> Decision:
        if (name is None) != (action == Action.STATUS):
            raise ValueError(f"an action {action} {'without' if name is None else 'with'} a repository")
        for rule in self._rules:
            if action in rule.actions and rule.is_for(principal) and rule.is_for_name(name):
                if rule.is_allowing:
                    return Decision(is_allowed=True, rule=rule.label)
                is_hidden = rule.is_hiding and principal.is_authenticated and name is not None
                return Decision(is_allowed=False, rule=rule.label, reason=rule.reason, is_hidden=is_hidden)
        return _STATUS_ALLOWED if action == Action.STATUS else _DENIED

    def _may_pull(self, principal: Principal, prefix: str) -> bool:
        names = self._names.get(prefix) or NamePattern((*filter(None, prefix.split("/")), ANY_COMPONENTS))
        # Names that belong to an upstream with a longer prefix are none of this one.
        denied = [others for longer, others in self._names.items() if longer.startswith(f"{prefix}/")]
        for rule in self._rules:
            if Action.PULL not in rule.actions or not rule.is_for(principal):
                continue
            if not rule.is_allowing:
                denied += rule.repositories
            elif any(
                not allowed.is_covered_by(denied)
                for pattern in rule.repositories
                for allowed in pattern.find_within(names)
            ):
                return True
        return False


def find_groups(groups: Sequence[Group], name: str, source: Source) -> frozenset[str]:
    """Return the names of the groups that a login is in."""
    login = Principal(name, source=source)
    return frozenset(
        group.name
        for group in groups
        if any(_is_in(login, Clients.parse(member), is_allowing=False) for member in group.members)
    )


def _is_in(principal: Principal, clients: Clients, *, is_allowing: bool) -> bool:
    match clients.kind:
        case ClientKind.ANONYMOUS:
            return is_allowing or not principal.is_authenticated
        case ClientKind.AUTHENTICATED:
            return principal.is_authenticated
        case ClientKind.USER:
            return principal.source == "htpasswd" and principal.name == clients.name
        case ClientKind.TOKEN:
            return principal.source == "jwt" and clients.matches_name(principal.name)
        case ClientKind.GROUP:
            return clients.name in principal.groups
        case ClientKind.TOKEN_GROUP:
            return any(map(clients.matches_name, principal.groups))
        case ClientKind.NETWORK:
            return clients.name in principal.networks


def _size(principal: Principal) -> int:
    """How much a cached decision about a client keeps in memory, in characters."""
    return len(principal.name) + sum(map(len, principal.groups))
