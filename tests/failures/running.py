"""A server whose upstreams all fail, each in its own way. All are requested at once; the log has a line for each."""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import attrs

from tests.failures.certificates import make_authority
from tests.failures.failure import Seen, replace_variables
from tests.failures.upstreams import Place, UpstreamFailure
from tests.support.deployment import Deployment, eventually, open_deployment
from tests.support.fake_registry import FakeRegistry

REQUESTS = 16
LOGGED_WITHIN_S = 30.0


@attrs.define
class FailingServer:
    """The server. Each failure has a prefix of its own."""

    deployment: Deployment
    places: dict[UpstreamFailure, Place]
    _seen: dict[UpstreamFailure, "Future[Seen]"] = attrs.field(factory=dict)

    def request_all(self, pool: ThreadPoolExecutor) -> None:
        """Request something of each upstream."""
        for failure, place in self.places.items():
            self._seen[failure] = pool.submit(self._request, place)

    def see(self, failure: UpstreamFailure) -> Seen:
        """What was seen of a failure."""
        return self._seen[failure].result()

    def _request(self, place: Place) -> Seen:
        response = self.deployment.request(place.method, f"/v2/{place.prefix}/{place.path}")
        assert response.status >= 400 or not response.is_complete, response
        line = eventually(lambda: self._find_line(place), f"the line of {place.prefix}", LOGGED_WITHIN_S)
        about = [each for each in self.deployment.dockyard.read_log().splitlines() if place.prefix in each]
        return Seen(
            replace_variables(line, place.names),
            response.body,
            "\n".join(replace_variables(each, place.names) for each in about),
        )

    def _find_line(self, place: Place) -> str:
        lines = self.deployment.dockyard.read_log().splitlines(keepends=True)
        name = re.compile(rf" request\b.* (name=|path=/v2/){re.escape(place.prefix)}/")
        return next((line for line in lines if line.endswith("\n") and name.search(line)), "")


@contextlib.contextmanager
def failing_server(directory: Path, failures: Sequence[UpstreamFailure]) -> Iterator[FailingServer]:
    """Arrange all these failures and start the server; the upstreams are requested already."""
    (directory / "bin").mkdir(parents=True)
    (directory / ".docker").mkdir()
    authority = make_authority()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    keychain: dict[str, dict[str, str]] = {"credHelpers": {}}
    with ExitStack() as servers:
        places: dict[UpstreamFailure, Place] = {}
        for number, failure in enumerate(failures):
            place = Place(directory, servers, authority, f"f{number}.example", keychain)
            place.names |= {str(directory): "/DIRECTORY", place.prefix: "PREFIX"}
            failure.arrange(place)
            places[failure] = place
        file = directory / ".docker" / "config.json"
        texts = {failure.keychain for failure in failures}
        assert len(texts) == 1, "failures of the keychain file need a server of their own"
        (text,) = texts
        if text is None:
            file.write_text(json.dumps(keychain))
        elif text:
            file.write_text(text)
        else:
            file.mkdir()
        upstreams = [{"prefix": place.prefix, **place.settings} for place in places.values() if place.is_configured]
        deployment = servers.enter_context(
            open_deployment(
                servers.enter_context(FakeRegistry()),
                directory,
                upstreams=upstreams,
                environ={"PATH": f"{directory / 'bin'}:/usr/bin:/bin"},
            )
        )
        server = FailingServer(deployment, places)
        with ThreadPoolExecutor(REQUESTS) as pool:
            server.request_all(pool)
            yield server
