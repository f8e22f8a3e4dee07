"""The S3 store: what it does without a server."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from dockyard.config.settings import Secret, StorageSettings
from dockyard.s3.store import S3Store


def test_an_upload_that_cannot_be_aborted_during_the_retries_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread records an upload while one is being aborted: both are aborted, each once."""
    settings = StorageSettings(
        bucket="cache", access_key="key", secret_key=Secret("secret"), endpoint="s3.test", directory=Path("/tmp")
    )
    store = S3Store(settings, {})
    uploads = store._client.unaborted_uploads
    uploads.append(("first", "1"))
    aborted: list[tuple[str, str]] = []

    def abort(operation: str, method: str, key: str, *, query: Mapping[str, str]) -> None:
        aborted.append((key, query["uploadId"]))
        if key == "first":
            uploads.append(("second", "2"))

    monkeypatch.setattr(store._client, "request", abort)
    store.retry_aborts()
    assert aborted == [("first", "1"), ("second", "2")]
    assert uploads == []
