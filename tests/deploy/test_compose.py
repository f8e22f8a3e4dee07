"""The compose file: its variables are settings of Dockyard, its images are pinned, and it opens no port to others."""

import re
from typing import Any

import pytest
import yaml

from dockyard.config.loader import load
from dockyard.routing import Router
from tests.support.paths import ROOT

SERVICES = ["dockyard", "versitygw", "expire"]
TIERS = ROOT / "ops" / "tiers"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services of the compose file."""
    found = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert isinstance(found, dict)
    return found


def test_the_variables_are_settings(services: dict[str, Any]) -> None:
    """With the mounted config.yaml they configure a bucket in path style, without warnings."""
    settings = load(ROOT / "config.yaml", services["dockyard"]["environment"])
    assert settings.warnings == ()
    assert (settings.storage.bucket, settings.storage.prefix) == ("dockyard-cache", "cache/")
    assert settings.storage.force_path_style
    assert not settings.storage.use_ssl
    assert settings.storage.touch_threshold == 86_400
    assert settings.server.drain_timeout < int(services["dockyard"]["stop_grace_period"].removesuffix("s"))


def test_the_store_has_the_bucket_and_the_credentials(services: dict[str, Any]) -> None:
    """What Dockyard uses is what the store gets: host, port, credentials, region and bucket."""
    storage = load(None, services["dockyard"]["environment"]).storage
    store = services["versitygw"]
    (command,) = store["command"]
    host, _, port = storage.endpoint.partition(":")
    assert host in services
    assert f"--port :{port} --region {storage.region} " in command
    assert f"/data/{storage.bucket} " in command
    assert store["environment"] == {
        "ROOT_ACCESS_KEY": storage.access_key,
        "ROOT_SECRET_KEY": storage.secret_key.reveal(),
    }
    (expiry,) = services["expire"]["command"]
    assert f"/data/{storage.bucket} -path '*/{storage.bucket}/{storage.prefix}*' " in expiry


def test_only_this_machine_reaches_it(services: dict[str, Any]) -> None:
    """Dockyard is published on loopback; the store, whose credentials are in the file, is not published at all."""
    assert services["dockyard"]["ports"] == ["127.0.0.1:5000:5000"]
    assert [name for name, service in services.items() if "ports" in service] == ["dockyard"]


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_restricted(services: dict[str, Any], name: str) -> None:
    """No service can write to its root file system, has a capability, or can get privileges."""
    service = services[name]
    assert list(services) == SERVICES
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"


def test_images_are_pinned_by_digest(services: dict[str, Any]) -> None:
    """An image does not change unnoticed; the tag says which version the digest is."""
    images = [service["image"] for service in services.values() if "image" in service]
    assert len(images) == 2
    assert all(re.fullmatch(r"[a-z./]+:v[\d.]+@sha256:[0-9a-f]{64}", image) for image in images)


def test_dockyard_and_the_store_have_health_checks(services: dict[str, Any]) -> None:
    """`docker compose up --wait` waits for both."""
    assert "http://127.0.0.1:5000/healthz" in services["dockyard"]["healthcheck"]["test"][-1]
    assert services["versitygw"]["healthcheck"]["test"][-1].endswith(":9000/_health")


@pytest.fixture(scope="module")
def tiers() -> dict[str, Any]:
    """The services of the compose file of two tiers."""
    found = yaml.safe_load((TIERS / "compose.yaml").read_text())["services"]
    assert isinstance(found, dict)
    return found


def test_the_inner_tier_asks_the_outer_one(tiers: dict[str, Any]) -> None:
    """Each prefix of the rack leads to the region, and there to the same prefix."""
    assert list(tiers) == ["region", "rack"]
    files = [tiers[name]["volumes"][0].split(":")[0] for name in tiers]
    region, rack = (load(TIERS / file, {}) for file in files)
    assert (region.warnings, rack.warnings) == ((), ())
    assert [each.prefix for each in rack.upstreams] == [each.prefix for each in region.upstreams]
    for upstream in rack.upstreams:
        asked = Router(rack.upstreams).route(f"{upstream.prefix}/org/app")
        assert (asked.upstream.origin.host, asked.upstream.origin.port) == ("region", region.server.port)
        answering = Router(region.upstreams).route(asked.repository)
        assert (answering.upstream.prefix, answering.repository) == (upstream.prefix, "org/app")
        assert answering.name == asked.name
    assert rack.upstream.check_timeout > region.upstream.check_timeout


def test_both_tiers_are_restricted(tiers: dict[str, Any]) -> None:
    """As the compose file of one: no capability, nothing to write to, and only the rack can be reached, from here."""
    assert [service.get("ports") for service in tiers.values()] == [None, ["127.0.0.1:5000:5000"]]
    for service in tiers.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "http://127.0.0.1:5000/healthz" in service["healthcheck"]["test"][-1]
    assert len({service["volumes"][1] for service in tiers.values()}) == 2
