"""The endpoint where clients exchange a login, or none, for an access token.

Sources: "Token Authentication Specification" and "Oauth2 Token Authentication" of the distribution project, RFC 6749.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs

import falcon.asgi

from dockyard.errors import RequestInvalid
from dockyard.oci.login import Login
from dockyard.web.access_gate import AccessGate, SealsLogins
from dockyard.web.request_filter import MAX_FORM_BYTES
from dockyard.web.request_record import SCOPE_KEY

MAX_FORM_WAIT_S: Final = 10.0
MAX_FIELDS: Final = 64


class AccessTokenEndpoint:
    """`GET`, `POST /token`. What a token is requested for does not matter: it admits to nothing by itself."""

    def __init__(self, gate: AccessGate, tokens: SealsLogins) -> None:
        self._gate = gate
        self._tokens = tokens

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """200 with a token for the login in the Authorization header, or for none. Raises RegistryError."""
        await self._respond(req, resp, None)

    on_head = on_get

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """200 with a token for the login in a form. Raises RegistryError."""
        await self._respond(req, resp, _find_login(await _read_form(req)))

    async def _respond(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, given: Login | None) -> None:
        login = await self._gate.check_login(req, resp, req.scope[SCOPE_KEY], given)
        token = self._tokens.issue(login)
        # Without `issued_at`, clients count from when they receive it, whatever their clocks say.
        content = {
            "token": token,
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": self._tokens.lifetime_s,
        }
        resp.content_type = "application/json"
        resp.set_header("cache-control", "no-store")
        resp.data = json.dumps(content).encode()


async def _read_form(req: falcon.asgi.Request) -> Mapping[str, str]:
    """Return the fields of a form, whose size the request filter limits. Raises RequestInvalid."""
    try:
        async with asyncio.timeout(MAX_FORM_WAIT_S):
            body = await req.stream.read(MAX_FORM_BYTES)
    except TimeoutError as exc:
        raise RequestInvalid("the form was not received in time") from exc
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError as exc:
        raise RequestInvalid("the body is not a form") from exc
    for name in ("grant_type", "username", "password"):
        if len(fields.get(name, ())) > 1:
            raise RequestInvalid(f"the form has several fields with the name {name}")
    return {name: values[0] for name, values in fields.items()}


def _find_login(fields: Mapping[str, str]) -> Login | None:
    """Return the login in a form; None if its name and its password are empty. Raises RequestInvalid."""
    if fields.get("grant_type") != "password":
        raise RequestInvalid("grant_type must be password: there are no refresh tokens here")
    username, password = fields.get("username", ""), fields.get("password", "")
    if ":" in username:
        raise RequestInvalid("a user name must not contain a colon")
    return Login(username, password) if username or password else None
