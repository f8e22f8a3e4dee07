"""One run with a canary in place of every secret there is, with and without failures; then everything is searched.

The other tests of this package have three canaries per deployment; this one adds a keychain, a proxy, a token service,
a real bucket, and presigned URLs.
"""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.s3.service.bucket_view import BucketView
from tests.s3.service.conftest import bucket_view, proxy
from tests.s3.store.conftest import minio
from tests.s3.store.proxy import S3Proxy, s3_error
from tests.s3.store.servers import SECRET_KEY
from tests.security.canaries import Canary, WatchedDeployment, is_in
from tests.security.conftest import BEARER, CLIENT, PASSWORD
from tests.support import faults
from tests.support.deployment import eventually, upstream
from tests.support.fake_auth import FakeTokenService
from tests.support.fake_registry import FakeRegistry, basic
from tests.support.http_client import send_request

__all__ = ["bucket_view", "minio", "proxy"]

KEYCHAIN = Canary("canary-keychain-70d2", frozenset({"registry"}))
IDENTITY = Canary("canary-identity-c4f1", frozenset({"registry"}), in_form=True)
EXPANDED = Canary("canary-expanded-9b30", frozenset({"registry"}))
PROXY = Canary("canary-proxy-2e68", frozenset({"proxy"}))
SIGNED = Canary("canary-signature-51fa")
STORE = Canary(SECRET_KEY)
ALL = [PASSWORD, BEARER, CLIENT, KEYCHAIN, IDENTITY, EXPANDED, PROXY, SIGNED, STORE]


def _keychain(directory: Path, fake_registry: FakeRegistry) -> dict[str, str]:
    directory.mkdir()
    auth = base64.b64encode(f"ann:{KEYCHAIN.text}".encode()).decode()
    entries = {"key": {"auth": auth}, "identity": {"auth": auth, "identitytoken": IDENTITY.text}}
    auths = {f"{fake_registry.authority}/{repo}": entry for repo, entry in entries.items()}
    (directory / "config.json").write_text(json.dumps({"auths": auths}))
    return {"DOCKER_CONFIG": str(directory), "EXPANDED": EXPANDED.text}


def _upstreams(fake_registry: FakeRegistry) -> list[dict[str, object]]:
    kept = upstream("key.test", fake_registry.url)
    del kept["auth"]
    return [
        kept,
        upstream("up.test", fake_registry.url),
        upstream("basic.test", fake_registry.url, auth={"type": "basic", "username": "ann", "password": PASSWORD.text}),
        upstream("bearer.test", fake_registry.url, auth={"type": "bearer", "password": BEARER.text}),
        upstream("var.test", fake_registry.url, auth={"type": "basic", "username": "ann", "password": "${EXPANDED}"}),
        upstream(
            "proxy.test",
            "http://registry.example.com",
            proxy=f"http://ann:{PROXY.text}@{fake_registry.listen('proxy', '127.0.0.3').authority}",
        ),
    ]


def test_no_secret_leaks(
    bucket_view: BucketView,
    proxy: S3Proxy,
    make_deployment: Callable[..., WatchedDeployment],
    fake_registry: FakeRegistry,
    tmp_path: Path,
) -> None:
    """Every kind of login, with and without failures: no canary is found where it does not belong, in any encoding."""
    fake_registry.listen("cdn", "127.0.0.2")
    service = FakeTokenService(fake_registry)
    deployment = make_deployment(
        upstreams=_upstreams(fake_registry),
        storage=bucket_view.storage(proxy.host, redirect=True),
        environ=_keychain(tmp_path / "docker", fake_registry),
        logger={"level": "debug"},
        server={"log": {"enabled": True, "level": "debug", "request_body": True, "response_body": True}},
    )
    own = {"Authorization": f"Bearer {CLIENT.text}", "Cookie": CLIENT.text}
    prefixes = ["up", "basic", "bearer", "key", "var", "proxy"]
    for number, prefix in enumerate(prefixes * 2):
        for repo in ("key", "identity") if prefix == "key" else (f"app-{prefix}",):
            image = fake_registry.add_image(repo, f"v{number}", [f"{repo} {number}".encode() * 1000])
            signed = f"{fake_registry.listeners['cdn'].url}/cdn/{image.layers[0]}?X-Amz-Signature={SIGNED.text}"
            fake_registry.on("blob", faults.redirected(signed), reference=image.layers[0], times=1)
            for path in (f"manifests/v{number}", f"blobs/{image.layers[0]}", "tags/list", "manifests/none"):
                deployment.get(f"/v2/{prefix}.test/{repo}/{path}", **own)
        if number == len(prefixes):  # from here on everything fails, and the error responses repeat what they received
            service.revoke_all()
            fake_registry.on("token", lambda request, response: response.of(500, str(request).encode()), times=3)
            proxy.rule = lambda request: s3_error(403, "AccessDenied", str(request.headers))
    assert len(bucket_view.listed()) > 10
    _assert_used(deployment, proxy)
    # The identity token is sent in a form; the signature is part of a URL of the CDN, and of no other.
    found = [
        leak for leak in deployment.leaks(ALL) if not leak.startswith(f"{SIGNED.text} in a GET at the listener cdn")
    ]
    assert found == []
    for canary in ALL:
        spellings = tuple(canary.spellings())
        for request in list(proxy.requests):
            assert not is_in([request.target.encode(), str(request.headers).encode()], spellings), canary
        for key in bucket_view.listed():
            assert not is_in([key.encode(), bucket_view.get(key), str(bucket_view.stat(key)).encode()], spellings), (
                canary,
                key,
            )


def _assert_used(deployment: WatchedDeployment, proxy: S3Proxy) -> None:
    """Each login was really sent to its destination in this run."""
    sent = {each.request.header("Authorization") for each in deployment.fake_registry.received()}
    assert {basic("ann", each.text) for each in (PASSWORD, KEYCHAIN, EXPANDED)} <= sent
    assert f"Bearer {BEARER.text}" in sent
    assert any(IDENTITY.text in each.request.body.decode() for each in deployment.fake_registry.received("token"))
    proxy_logins = [
        each.request.header("Proxy-Authorization") for each in deployment.fake_registry.received(listener="proxy")
    ]
    assert set(proxy_logins) == {basic("ann", PROXY.text)}
    assert any("AWS4-HMAC-SHA256" in each.headers.get("authorization", "") for each in proxy.requests)


@pytest.mark.parametrize("where", ["log", "file", "name of a file", "another listener", "another header", "response"])
def test_the_search_finds_planted_canaries(deployment: WatchedDeployment, where: str) -> None:
    """The search itself: a canary that is put where it should not be is found, in base64 too."""
    canary = Canary(f"planted-{where.replace(' ', '-')}-77", frozenset({"registry"}))
    hidden = base64.b64encode(f"user:{canary.text}".encode()).decode()
    planted = deployment.dockyard.storage / "planted"
    match where:
        case "log":
            with deployment.dockyard.log.open("a") as file:
                file.write(f"{hidden}\n")
        case "file":
            planted.write_text(f"..{hidden}..")
        case "name of a file":
            planted = planted.with_name(canary.text)
            planted.touch()
        case "another listener" | "another header":
            name = "registry" if where == "another header" else "strange"
            if name == "strange":
                deployment.fake_registry.listen(name, "127.0.0.9")
            header = "Cookie" if where == "another header" else "Authorization"
            listener = deployment.fake_registry.listeners[name]
            send_request((listener.host, listener.port), "/v2/", {header: f"Basic {hidden}"})
        case "response":
            deployment.get(f"/v2/{canary.text}/blobs/x")
    eventually(lambda: deployment.leaks([canary]), "the canary is found")
    planted.unlink(missing_ok=True)
