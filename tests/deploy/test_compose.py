"""The compose files: their variables are settings of Dockyard, and their images are pinned."""

from typing import Any

import pytest
import yaml

from dockyard.config.loader import load
from tests.support.paths import ROOT

FILES = ["docker-compose.yml", "ops/docker-compose.versitygw.yml"]


def services(file: str) -> dict[str, Any]:
    """The services of a compose file."""
    found = yaml.safe_load((ROOT / file).read_text())["services"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("file", FILES)
def test_the_variables_are_settings(file: str) -> None:
    """With the mounted config.yaml they configure a bucket in path style, without warnings."""
    settings = load(ROOT / "config.yaml", services(file)["dockyard"]["environment"])
    assert settings.warnings == ()
    assert (settings.storage.bucket, settings.storage.prefix) == ("dockyard-cache", "cache/")
    assert settings.storage.force_path_style
    assert not settings.storage.use_ssl
    assert settings.storage.touch_threshold == 86_400
    assert settings.server.drain_timeout < int(services(file)["dockyard"]["stop_grace_period"].removesuffix("s"))


def test_ports_keys_and_names_of_the_quick_start() -> None:
    """The ports, keys and names of the quick start."""
    found = services("docker-compose.yml")
    assert found["dockyard"]["ports"] == ["5000:5000"]
    assert found["minio"]["ports"] == ["9000:9000", "9001:9001"]
    storage = load(None, found["dockyard"]["environment"]).storage
    assert (storage.endpoint, storage.access_key, storage.secret_key.reveal()) == (
        "minio:9000",
        "minioadmin",
        "minioadmin",
    )
    assert found["minio-init"]["command"][-1].endswith(f"/{storage.bucket}")


@pytest.mark.parametrize("file", FILES)
def test_images_are_pinned(file: str) -> None:
    """An image does not change unnoticed."""
    images = [service["image"] for service in services(file).values() if "image" in service]
    assert images
    assert all(":" in image and not image.endswith(":latest") for image in images)
