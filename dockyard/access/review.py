"""Finds what is allowed in the settings of access, and probably not intended. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import Final

import attrs

from dockyard.access.principals import Principal
from dockyard.access.rules import Action, Rule, Rules
from dockyard.config.hosts import is_loopback, parse_network
from dockyard.config.settings import AccessSettings, Settings, Upstream
from dockyard.config.who import ClientKind, Clients
from dockyard.oci.patterns import NamePattern

_WITH_LOGIN: Final = Clients(ClientKind.AUTHENTICATED)
_WITHOUT_LOGIN: Final = Clients(ClientKind.ANONYMOUS)
_LOGINS: Final = frozenset(
    {ClientKind.AUTHENTICATED, ClientKind.USER, ClientKind.TOKEN, ClientKind.GROUP, ClientKind.TOKEN_GROUP}
)


@attrs.frozen
class AccessWarning:
    """Something that is probably not intended, as an event with its fields for the log."""

    event: str
    fields: Mapping[str, object] = attrs.field(factory=dict)


def find_access_mistakes(settings: Settings) -> Iterator[AccessWarning]:
    """Yield what is probably not intended. The settings have no errors."""
    access = settings.access
    logins = [key for key in ("htpasswd", "jwt") if getattr(access, key)]
    asking = [upstream.prefix for upstream in settings.upstreams if upstream.access == "upstream"]
    if logins and not settings.restricts_access:
        yield AccessWarning(
            "clients can log in, and everybody may pull everything: write access.rules", {"set": logins}
        )
    if access.dry_run:
        yield AccessWarning("access.dry_run is true: access.rules deny nothing")
    if (logins or asking) and not _is_encrypted(settings):
        yield AccessWarning(
            "passwords and tokens of clients are sent in clear text: set server.tls, or server.trusted_proxies if a "
            "proxy in front of this server serves HTTPS"
        )
    if (asking or (access.rules and not access.dry_run)) and not access.closed_nodes:
        yield AccessWarning(
            "clients that use this server as a mirror pull what it denies from the registry itself: prevent that as "
            "ops/ACCESS.md says, and set access.closed_nodes"
        )
    if access.rules:
        yield from _find_useless_rules(access, settings.upstreams, logins)


def _is_encrypted(settings: Settings) -> bool:
    server = settings.server
    return server.tls or bool(server.trusted_proxies) or is_loopback(server.host)


def _find_useless_rules(
    access: AccessSettings, upstreams: Sequence[Upstream], logins: Sequence[str]
) -> Iterator[AccessWarning]:
    if not any(rule.allow for rule in access.rules):
        yield AccessWarning(
            "no rule allows anything, so that everything is denied: add a rule with allow: true as the last one"
        )
    rules = [Rule.parse(index, rule) for index, rule in enumerate(access.rules)]
    if not logins:
        labels = [f"access.{rule.label}" for rule in rules if any(clients.kind in _LOGINS for clients in rule.who)]
        if labels:
            yield AccessWarning(
                "rules name clients with a login, and no client has one: set access.htpasswd or access.jwt",
                {"rules": labels},
            )
    for found in find_unreachable(access, upstreams):
        yield AccessWarning(
            "a rule has no effect: rules before it decide about every request that it matches: move it before them, "
            "or delete it",
            {"rule": f"access.{found.label}", "decided_by": [f"access.{label}" for label in found.decided_by]},
        )
    decide = Rules(access, upstreams)
    anybody = Principal(networks=frozenset(network.name for network in access.networks))
    for upstream in upstreams:
        if upstream.access == "upstream" and not decide.may_pull_below(anybody, upstream.prefix):
            yield AccessWarning(
                "no client with a login at an upstream may pull from it: rules see it as a client without a login: "
                "add a rule that allows repositories of this upstream to anonymous",
                {"upstream": upstream.prefix},
            )


def find_rules_for_other_logins(access: AccessSettings, upstreams: Sequence[Upstream]) -> Iterator[tuple[str, str]]:
    """Yield rules that are only for clients with a login, each with an upstream where clients log in themselves."""
    for index, rule in enumerate(access.rules):
        parsed = Rule.parse(index, rule)
        if not rule.repositories or not parsed.who or any(clients.kind not in _LOGINS for clients in parsed.who):
            continue
        for upstream in upstreams:
            if upstream.access == "upstream" and _is_about(parsed, upstream.names):
                yield parsed.label, upstream.prefix


def _is_about(rule: Rule, names: NamePattern) -> bool:
    return any(next(pattern.find_within(names), None) for pattern in rule.repositories)


# Rules that no request reaches


@attrs.frozen
class UnreachableRule:
    """A rule that never decides, because of others before it."""

    label: str
    decided_by: Sequence[str]


def find_unreachable(access: AccessSettings, upstreams: Sequence[Upstream]) -> Iterator[UnreachableRule]:
    """Yield rules for which each request is decided by a rule before them.

    Rules that are reached are never among them. Some that are not reached may be missing: see
    `NamePattern.is_covered_by`, and clients are compared by what the settings say about them.
    """
    rules = [Rule.parse(index, rule) for index, rule in enumerate(access.rules)]
    coverage = _Coverage(access, [upstream.names for upstream in upstreams])
    for index, rule in enumerate(rules):
        decided_by = coverage.find_deciding(rule, rules[:index])
        if decided_by:
            labels = [before.label for before in rules[:index] if before.label in decided_by]
            yield UnreachableRule(rule.label, labels)


class _Coverage:
    """Whether rules decide about each request that another rule matches."""

    def __init__(self, access: AccessSettings, names: Sequence[NamePattern]) -> None:
        self._names = names
        self._members = {group.name: list(map(Clients.parse, group.members)) for group in access.groups}
        self._networks = {network.name: list(map(parse_network, network.addresses)) for network in access.networks}

    def find_deciding(self, rule: Rule, before: Sequence[Rule]) -> set[str]:
        """Return the labels of rules that together decide about each request of a rule; empty if they do not."""
        deciding: set[str] = set()
        for clients in _find_clients(rule):
            found = self._find_for_clients(rule, clients, before)
            if not found:
                return set()
            deciding |= found
        return deciding

    def _find_for_clients(self, rule: Rule, clients: Clients, before: Sequence[Rule]) -> set[str]:
        deciding: set[str] = set()
        for action in rule.actions:
            relevant = [other for other in before if action in other.actions and self._is_for(other, clients)]
            found = self._find_for_names(rule, relevant, action)
            if not found:
                return self._find_for_members(rule, clients, before)
            deciding |= found
        return deciding

    def _find_for_members(self, rule: Rule, clients: Clients, before: Sequence[Rule]) -> set[str]:
        """Return the labels of rules that decide about each member of a group; empty for anything else."""
        if clients.kind is not ClientKind.GROUP:
            return set()
        found = [self._find_for_clients(rule, member, before) for member in self._members.get(clients.name, ())]
        return set().union(*found) if all(found) else set()

    def _find_for_names(self, rule: Rule, relevant: Sequence[Rule], action: Action) -> set[str]:
        if action == Action.STATUS:
            return {relevant[0].label} if relevant else set()
        deciding: set[str] = set()
        for pattern in rule.repositories:
            for names in self._names:
                for part in pattern.find_within(names):
                    found = _find_covering(part, relevant)
                    if not found:
                        return set()
                    deciding |= found
        return deciding

    def _is_for(self, rule: Rule, clients: Clients) -> bool:
        """Return whether a rule is for all these clients."""
        if not rule.who:
            return True
        return any(self._includes(entry, clients, is_allowing=rule.is_allowing) for entry in rule.who)

    def _includes(self, entry: Clients, clients: Clients, *, is_allowing: bool) -> bool:
        match entry.kind:
            case ClientKind.ANONYMOUS:
                return is_allowing or clients.kind is ClientKind.ANONYMOUS
            case ClientKind.AUTHENTICATED:
                return clients.kind in _LOGINS
            case ClientKind.GROUP:
                return entry == clients or any(member.includes(clients) for member in self._members.get(entry.name, ()))
            case ClientKind.NETWORK if clients.kind is ClientKind.NETWORK:
                return _is_within(self._networks.get(clients.name, ()), self._networks.get(entry.name, ()))
            case _:
                return entry.includes(clients)


def _find_clients(rule: Rule) -> Sequence[Clients]:
    """Return the clients of a rule as entries that are apart: all are those with a login, and those without."""
    is_for_all = rule.is_allowing and _WITHOUT_LOGIN in rule.who
    return (_WITH_LOGIN, _WITHOUT_LOGIN) if is_for_all or not rule.who else rule.who


def _find_covering(pattern: NamePattern, rules: Sequence[Rule]) -> set[str]:
    for rule in rules:
        if pattern.is_covered_by(rule.repositories):
            return {rule.label}
    everything = [other for rule in rules for other in rule.repositories]
    return {rule.label for rule in rules} if pattern.is_covered_by(everything) else set()


def _is_within(networks: Sequence[IPv4Network | IPv6Network], others: Sequence[IPv4Network | IPv6Network]) -> bool:
    """Return whether others contain all addresses of networks, of which there is one at least."""
    outer4 = list(collapse_addresses(other for other in others if isinstance(other, IPv4Network)))
    outer6 = list(collapse_addresses(other for other in others if isinstance(other, IPv6Network)))
    return bool(networks) and all(
        any(network.subnet_of(outer) for outer in outer4)
        if isinstance(network, IPv4Network)
        else any(network.subnet_of(outer) for outer in outer6)
        for network in networks
    )
