"""What the settings of access say about users, compared with the file that has them; and names that nothing uses.

No password and no hash is printed.
"""

import difflib
from collections.abc import Iterator, Sequence

from dockyard.access.review import find_rules_for_other_logins
from dockyard.check.findings import Finding, note, warning
from dockyard.config.htpasswd import read_htpasswd
from dockyard.config.loader import LoadedSettings
from dockyard.config.settings import AccessSettings
from dockyard.config.who import ClientKind, Clients

MAX_SHOWN = 10

_EVERYBODY = frozenset({"all", "any", "anybody", "anyone", "everybody", "everyone", "public"})


def find_all(loaded: LoadedSettings) -> Iterator[Finding]:
    """Yield findings about access, if its settings have no errors."""
    access = loaded.settings.access
    if loaded.is_wrong("access"):
        return
    named = dict(_find_entries(access))
    if access.htpasswd:
        yield from _compare_users(access, named)
    for kind, key, names in (
        (ClientKind.GROUP, "access.groups", [group.name for group in access.groups]),
        (ClientKind.NETWORK, "access.networks", [network.name for network in access.networks]),
    ):
        used = {clients.name for clients in named.values() if clients.kind is kind}
        if unused := [name for name in names if name not in used]:
            yield note(f"{key}: no rule names {_list(unused)}")
    if loaded.settings.issues_tokens and loaded.settings.storage.bucket and not access.token_key_file:
        yield note(
            "access.token_key_file: is not set: if other Dockyards with this bucket are behind the same load balancer, "
            "they refuse the access tokens of this one"
        )
    for rule, prefix in find_rules_for_other_logins(access, loaded.usable_upstreams):
        yield note(
            f"access.{rule}.who: clients that log in with an account of {prefix} are none of these: rules see them as "
            "clients without a login"
        )


def _compare_users(access: AccessSettings, named: dict[str, Clients]) -> Iterator[Finding]:
    try:
        users = sorted(read_htpasswd(access.htpasswd).hashes)
    except ValueError as exc:  # it has changed since the settings were read
        yield warning(f"access.htpasswd: {exc}")
        return
    used = {clients.name for clients in named.values() if clients.kind is ClientKind.USER}
    for key, clients in named.items():
        if clients.kind is ClientKind.USER and clients.name not in users:
            yield warning(f"{key}: {access.htpasswd} has no user {clients.name}{_suggest(clients.name, users, access)}")
    if others := [name for name in users if name not in used]:
        yield note(
            f"access.htpasswd: no rule names {_list(others)}: they have what clients with any login have "
            f"({len(users)} users in {access.htpasswd})"
        )


def _suggest(name: str, users: Sequence[str], access: AccessSettings) -> str:
    if name in {group.name for group in access.groups}:
        return f": for the group write group:{name}"
    if name in {network.name for network in access.networks}:
        return f": for the network write network:{name}"
    if name in {issuer.name for issuer in access.jwt}:
        return f": for tokens of this issuer write {name}:*"
    if name.lower() in _EVERYBODY:
        return ": for all clients leave `who` empty"
    nearest = difflib.get_close_matches(name.lower(), {user.lower(): user for user in users}, 1)
    likely = next((user for user in users if user.lower() in nearest), "")
    return f": did you mean {likely}?" if likely else f": add it with `dockyard passwd {name} --file {access.htpasswd}`"


def _find_entries(access: AccessSettings) -> Iterator[tuple[str, Clients]]:
    """Yield each client that rules and groups name, with its key."""
    for index, rule in enumerate(access.rules):
        for place, entry in enumerate(rule.who):
            yield f"access.rules[{index}].who[{place}]", Clients.parse(entry)
    for index, group in enumerate(access.groups):
        for place, entry in enumerate(group.members):
            yield f"access.groups[{index}].members[{place}]", Clients.parse(entry)


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(names[:MAX_SHOWN]) + more
