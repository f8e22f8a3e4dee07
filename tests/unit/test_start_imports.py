"""What `dockyard server` imports: what it uses with its settings, and all of it before it starts the workers.

Each import takes memory, and time before the first request is answered. What a worker imports itself is not shared with
the others. Each case runs in a process of its own, in which nothing was imported before.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

SCRIPT = """
import json, os, socket, sys
from pathlib import Path

from dockyard import cli
from dockyard.config.loader import load

settings = load(Path(sys.argv[1]), {}, {})
with cli._imports_for_server():
    import dockyard.supervisor as supervisor
from dockyard.storage.verified_files import VerifiedFiles
from dockyard.web.concealment import Concealment
from dockyard.workers.watchdog import WatchedProcess

supervisor.import_optional_modules(settings)
list(supervisor.find_start_warnings(settings, {}))
shared = supervisor._share_access(settings), supervisor._make_access_tokens(settings)
before = set(sys.modules)
watched = WatchedProcess(socket.socketpair()[0], -1)
run = Path(settings.storage.directory) / "run"
supervisor.create_app(settings, 2, run, VerifiedFiles(), *shared, Concealment(b"key"), "name", watched, {})
print(json.dumps({"supervisor": sorted(before), "worker": sorted(set(sys.modules) - before)}))
"""

UPSTREAMS = [{"prefix": "up.test", "registry": "http://127.0.0.1:9", "auth": {"type": "anonymous"}}]
BUCKET = {"endpoint": "127.0.0.1:9", "bucket": "bucket", "access_key": "key", "secret_key": "secret"}
ISSUER = {"name": "ci", "issuer": "https://issuer.test", "audience": "dockyard", "jwks": "https://issuer.test/keys"}
MINIMAL: Mapping[str, Any] = {}
WITH_BUCKET = {"storage": BUCKET}
WITH_LOGINS = {"access": {"htpasswd": "htpasswd", "jwt": [ISSUER], "challenge": "bearer"}}
WITH_UPSTREAM_ACCESS = {"upstreams": [{**UPSTREAMS[0], "access": "upstream"}]}


def find_imported(directory: Path, settings: Mapping[str, Any]) -> dict[str, set[str]]:
    """The modules that were imported before the fork and in a worker."""
    (directory / "htpasswd").write_text("user:$2y$05$abcdefghijklmnopqrstuuRYkEiiKTg1TUm1H8P6s9aFPZdWEaPOi\n")
    if "access" in settings and "htpasswd" in settings["access"]:
        settings = {**settings, "access": {**settings["access"], "htpasswd": str(directory / "htpasswd")}}
    storage = {"directory": str(directory / "storage"), **settings.get("storage", {})}
    file = directory / "config.yaml"
    file.write_text(json.dumps({"upstreams": UPSTREAMS, **settings, "storage": storage}))
    script = subprocess.run(
        [sys.executable, "-c", SCRIPT, file], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    return {process: set(modules) for process, modules in json.loads(script.stdout).items()}


@pytest.mark.parametrize(
    "settings",
    [MINIMAL, WITH_BUCKET, WITH_LOGINS, WITH_UPSTREAM_ACCESS],
    ids=["minimal", "bucket", "logins", "upstream-access"],
)
def test_workers_import_nothing(tmp_path: Path, settings: Mapping[str, Any]) -> None:
    """With any settings."""
    assert find_imported(tmp_path, settings)["worker"] == set()


@pytest.mark.parametrize(
    ("settings", "used", "unused"),
    [
        (MINIMAL, set(), {"minio", "jwt", "cryptography", "bcrypt"}),
        (WITH_BUCKET, {"minio"}, {"jwt", "bcrypt"}),
        (WITH_LOGINS, {"jwt", "cryptography", "bcrypt"}, {"minio"}),
    ],
    ids=["minimal", "bucket", "logins"],
)
def test_libraries_are_imported_if_the_settings_need_them(
    tmp_path: Path, settings: Mapping[str, Any], used: set[str], unused: set[str]
) -> None:
    """Rich, and the modules of other commands, are not imported with any."""
    imported = find_imported(tmp_path, settings)["supervisor"]
    assert used <= imported
    assert not (unused | {"rich", "dockyard.pull", "dockyard.check", "dockyard.passwd"}) & imported
