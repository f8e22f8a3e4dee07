"""What the tests of access share: settings with users, sources of logins, and what reached the registry."""

import secrets
from pathlib import Path
from typing import Any

import attrs

from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import Dockyard
from tests.support.htpasswd import write_htpasswd
from tests.support.images import PushedImage, push_docker

USER, PASSWORD = "alice", "right-password"
REFUSED = (
    r"401|403|(?i:unauthorized|denied|authentication|authorization)"
    r"|no basic auth|basic credential not found|invalid username"
)


def access(directory: Path, *rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Settings with one user."""
    directory.mkdir(parents=True)
    users = write_htpasswd(directory / "htpasswd", {USER: PASSWORD})
    return {"access": {"htpasswd": str(users), "rules": list(rules), **more}}


@attrs.frozen
class Source:
    """A Dockyard that gives nothing to clients without a login, and a right and a wrong login of one source."""

    dockyard: Dockyard
    registry: DistributionRegistry
    right: tuple[str, str]
    wrong: tuple[str, str]


def push(registry: DistributionRegistry, parent: str) -> PushedImage:
    """Push an image that nobody has pulled yet below a name."""
    unique = secrets.token_hex(4)
    image = push_docker(registry, f"{parent}/{unique}", unique)
    registry.clear_requests()
    return image


def fetched(registry: DistributionRegistry, image: PushedImage) -> list[str]:
    """The blobs of an image that were fetched from the registry, sorted."""
    requests = [each for each in registry.requests() if each.method == "GET" and "/blobs/" in each.path]
    paths = [each.path for each in requests if each.status == 200]
    return sorted(path.rpartition("/")[2] for path in paths if f"/{image.repository}/" in path)


def content(registry: DistributionRegistry) -> list[str]:
    """The requests that were answered with content, other than `/v2/`."""
    return [str(each) for each in registry.requests() if each.status == 200 and each.path != "/v2/"]
