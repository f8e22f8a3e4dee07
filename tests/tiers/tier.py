"""A server of a tier, its requests, and the settings that put it behind another one."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.deployment import sum_samples
from tests.support.dockyard import Dockyard
from tests.support.http_client import Response, send_request
from tests.support.loopback_server import LoopbackServer
from tests.support.processes import wait_until

HUB = "docker.io"
NO_LOGIN = {"type": "anonymous"}


class Tier(Dockyard):
    """A Dockyard. `upstreams` may be set until it starts: they may lead to servers that are made later."""

    def __init__(self, directory: Path, *upstreams: dict[str, Any], workers: int = 1, **settings: Any) -> None:
        settings["upstream"] = {"check_timeout": "2s", "stall_timeout": "10s", **settings.get("upstream", {})}
        super().__init__(directory, upstreams, workers=workers, settings=settings)

    def use(self, *upstreams: dict[str, Any]) -> None:
        """Set the upstreams, for the next start."""
        self.settings["upstreams"] = list(upstreams)

    def send(self, path: str, method: str = "GET", **headers: str) -> Response:
        """Send a request; header names are given with underscores for hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return send_request(("127.0.0.1", self.port), path, named, method=method)

    def requests(self, name: str) -> list[str]:
        """The lines of its log about requests whose path or name contains this."""
        return [line for line in self.read_log().splitlines() if re.search(rf" request\b.*{re.escape(name)}", line)]

    def metric(self, name: str) -> float:
        """The sum of the samples of a metric."""
        return sum_samples(self.send("/metrics"), name)

    def breakers(self) -> float:
        """How many circuit breakers are open."""
        return self.metric("dockyard_breaker_open")


def behind(outer: LoopbackServer, prefix: str = HUB, **more: Any) -> dict[str, Any]:
    """The upstream of an inner Dockyard that asks an outer one, as ops/TIERS.md says."""
    return {"prefix": prefix, "registry": f"{outer.url}/{prefix}", "auth": NO_LOGIN, **more}


def at(registry: LoopbackServer, prefix: str = HUB, **more: Any) -> dict[str, Any]:
    """The upstream of a Dockyard that asks a registry."""
    return {"prefix": prefix, "registry": registry.url, "auth": NO_LOGIN, **more}


@contextmanager
def serving(*tiers: Tier) -> Iterator[None]:
    """Start these servers, all at once; kill them at the end."""
    try:
        for tier in tiers:
            tier.start(wait=False)
        for tier in tiers:
            wait_until(tier.is_answering, "answering")
        yield
    finally:
        for tier in tiers:
            tier.kill()
            shutil.rmtree(tier.storage, ignore_errors=True)


def message_of(response: Response) -> str:
    """The message of an OCI error body."""
    (error,) = json.loads(response.body)["errors"]
    return str(error["message"])
