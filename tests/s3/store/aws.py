"""A fake of the AWS services that provide credentials: STS, the role of a container, and of a machine (IMDSv2)."""

import datetime as dt
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "canary-token"
DATE = "%Y-%m-%dT%H:%M:%SZ"


class FakeAws:
    """Provides credentials that expire after `lasts_s`. `requests` records what was requested.

    A `status` other than 200 is the response to all requests.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.status = 200
        self.lasts_s = 3600.0
        self.key = "key-of-the-role"
        self.secret = "secret-of-the-role"
        self.session: str | None = "session-of-the-role"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def environ(self, kind: str, home: Path) -> dict[str, str]:
        """Return the environment variables of a kind of AWS role."""
        token = home / "token"
        token.write_text(f"{TOKEN}\n")
        return {
            "HOME": str(home),
            **{
                "irsa": {
                    "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
                    "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/dockyard",
                    "AWS_ENDPOINT_URL_STS": self.url,
                },
                "ecs": {
                    "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{self.url}/container",
                    "AWS_CONTAINER_AUTHORIZATION_TOKEN": TOKEN,
                },
                "eks": {
                    "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{self.url}/container",
                    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(token),
                },
                "ec2": {"AWS_EC2_METADATA_SERVICE_ENDPOINT": self.url},
            }[kind],
        }

    def _respond(self, method: str, target: str, headers: Any, body: str) -> str:
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query) | parse_qs(body)
        match method, path:
            case "POST", "/" | "":
                action = query["Action"][0]
                self.requests.append(action)
                if action == "AssumeRoleWithWebIdentity":
                    assert query["WebIdentityToken"] == [TOKEN]
                assert query["RoleArn"][0].startswith("arn:aws:iam:")
                return self._xml(action)
            case "GET", "/container":
                self.requests.append("container")
                assert headers["Authorization"] == TOKEN
                return self._json()
            case "PUT", "/latest/api/token":
                self.requests.append("IMDS token")
                assert headers["X-aws-ec2-metadata-token-ttl-seconds"]
                return TOKEN
            case "GET", "/latest/meta-data/iam/security-credentials/":
                assert headers["X-aws-ec2-metadata-token"] == TOKEN
                return "dockyard-role"
            case "GET", "/latest/meta-data/iam/security-credentials/dockyard-role":
                self.requests.append("IMDS role")
                assert headers["X-aws-ec2-metadata-token"] == TOKEN
                return self._json()
        raise AssertionError(f"{method} {target}")

    def _expiration(self) -> str:
        return (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=self.lasts_s)).strftime(DATE)

    def _json(self) -> str:
        keys = {"AccessKeyId": self.key, "SecretAccessKey": self.secret, "Token": self.session}
        return json.dumps({"Code": "Success", "Expiration": self._expiration(), **keys})

    def _xml(self, action: str) -> str:
        keys = f"<AccessKeyId>{self.key}</AccessKeyId><SecretAccessKey>{self.secret}</SecretAccessKey>"
        keys += f"<SessionToken>{self.session}</SessionToken><Expiration>{self._expiration()}</Expiration>"
        namespace = "https://sts.amazonaws.com/doc/2011-06-15/"
        result = f"<{action}Result><Credentials>{keys}</Credentials></{action}Result>"
        return f'<{action}Response xmlns="{namespace}">{result}</{action}Response>'

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        aws = self

        class Handler(BaseHTTPRequestHandler):
            def respond(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
                try:
                    text, status = aws._respond(self.command, self.path, self.headers, body), aws.status
                except AssertionError as exc:
                    text, status = str(exc), 400
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_PUT = do_POST = respond  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        return Handler
