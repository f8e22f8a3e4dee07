"""The addresses of clients, also behind trusted proxies."""

from collections.abc import Callable

from dockyard.access.networks import Address, client_address, parse_networks
from dockyard.config.settings import ServerSettings
from dockyard.web.asgi import Scope
from dockyard.web.request_record import find_peer

FindAddress = Callable[[Scope], Address]


def make_find_address(settings: ServerSettings) -> FindAddress:
    """Return what finds the address of the client of a request, by `server.trusted_proxies`."""
    trusted = parse_networks(settings.trusted_proxies)

    def find_address(scope: Scope) -> Address:
        return client_address(scope["client"][0], scope["headers"], trusted, settings.proxy_header)

    return find_address


def make_find_client(settings: ServerSettings, find_address: FindAddress) -> Callable[[Scope], str]:
    """Return what finds the address of a client for the log. Without proxies, it is as the connection has it."""
    return (lambda scope: str(find_address(scope))) if settings.trusted_proxies else find_peer
