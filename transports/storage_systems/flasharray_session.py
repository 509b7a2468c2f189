"""Calls to the REST API of a FlashArray: login, pages, errors.

The API token is exchanged for a session token, which ends when it was not used for a while: a call that is
answered with 401 logs in again, once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Final

import httpx

from transports import tls
from transports.errors import PermanentTransportError, TransientTransportError
from transports.vsphere.model import Secret

TIMEOUT_S: Final = 60.0
"""Snapshots and clones take the array milliseconds; a busy controller is given a minute."""
VERSION: Final = "2.2"
"""Every array since Purity 6.0 speaks it, and goes on speaking it beside newer ones."""
_UNAUTHORIZED: Final = 401
_TOO_MANY: Final = 429
_SERVER_ERROR: Final = 500
_BAD_REQUEST: Final = 400
_PAGE: Final = 1000


class RefusedError(PermanentTransportError):
    """The array understood and said no."""


class FlashArraySession:
    """One login. May be used by several threads."""

    def __init__(
        self, address: str, thumbprint: str, api_token: Secret, *, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._address = address
        self._api_token = api_token
        self._client = httpx.Client(
            base_url=f"https://{address}/api",
            verify=tls.pinned_context(thumbprint, peer=f"the array at {address}"),
            timeout=timeout_s,
            trust_env=False,
        )
        self._lock = threading.Lock()
        self._token = ""

    def call(
        self,
        method: str,
        noun: str,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The answer's object. RefusedError for what the array does not do."""
        token = self._session()
        answer = self._send(method, f"/{VERSION}/{noun}", token, query, body)
        if answer.status_code == _UNAUTHORIZED:
            answer = self._send(
                method, f"/{VERSION}/{noun}", self._session(instead_of=token), query, body
            )
        return self._checked(answer, f"{method} {noun}")

    def items(self, noun: str, query: dict[str, str] | None = None) -> Iterator[dict[str, Any]]:
        """All items of a list, page by page."""
        wanted = {"limit": str(_PAGE), **(query or {})}
        while True:
            page = self.call("GET", noun, wanted)
            yield from page.get("items") or []
            following = page.get("continuation_token")
            if not page.get("more_items_remaining") or not following:
                return
            wanted = {**wanted, "continuation_token": str(following)}

    def close(self) -> None:
        with self._lock:
            token, self._token = self._token, ""
        if token:
            try:
                self._send("POST", f"/{VERSION}/logout", token, None, None)
            except TransientTransportError:
                token = ""  # the session ends by itself
        self._client.close()

    def _session(self, *, instead_of: str | None = None) -> str:
        with self._lock:
            if self._token and self._token != instead_of:
                return self._token
            self._check_version()
            answer = self._request(
                "POST", f"/{VERSION}/login", headers={"api-token": self._api_token.reveal()}
            )
            if answer.status_code in (_BAD_REQUEST, _UNAUTHORIZED):
                raise PermanentTransportError(
                    f"the array at {self._address} refused the API token; create one for an account that may "
                    "make volumes and connections, and give it with `vmhaul storage edit`"
                )
            self._checked(answer, "login")
            self._token = answer.headers.get("x-auth-token", "")
            if not self._token:
                raise PermanentTransportError(f"{self._address} logged in without a session token")
            return self._token

    def _check_version(self) -> None:
        answer = self._checked(self._request("GET", "/api_version"), "api_version")
        offered = [str(version) for version in answer.get("version") or []]
        if VERSION not in offered:
            raise PermanentTransportError(
                f"the array at {self._address} offers REST {', '.join(offered) or 'nothing'}, but not {VERSION}; "
                "it needs Purity 6.0 or later"
            )

    def _send(
        self,
        method: str,
        path: str,
        token: str,
        query: dict[str, str] | None,
        body: dict[str, Any] | None,
    ) -> httpx.Response:
        return self._request(
            method, path, headers={"x-auth-token": token}, params=query or {}, json=body
        )

    def _request(self, method: str, path: str, **how: Any) -> httpx.Response:
        try:
            return self._client.request(method, path, **how)
        except httpx.TimeoutException as error:
            raise TransientTransportError(
                f"the array at {self._address} did not answer {method} {path} in time"
            ) from error
        except RuntimeError as error:
            # So httpx says that the client was closed: its system was edited or removed by somebody meanwhile.
            raise TransientTransportError(
                f"the connection to the array at {self._address} was ended here; try again"
            ) from error
        except httpx.HTTPError as error:
            raise TransientTransportError(
                f"the array at {self._address} cannot be reached ({error}); check address and network"
            ) from error

    def _checked(self, answer: httpx.Response, what: str) -> dict[str, Any]:
        status = answer.status_code
        if status < _BAD_REQUEST:
            return self._decoded(answer, what)
        said = _errors(answer)
        text = f"the array at {self._address} answered {what} with {status}: {said}"
        if status in (_TOO_MANY, _UNAUTHORIZED) or status >= _SERVER_ERROR:
            raise TransientTransportError(text)
        raise RefusedError(text)

    def _decoded(self, answer: httpx.Response, what: str) -> dict[str, Any]:
        try:
            found = answer.json() if answer.content else {}
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise PermanentTransportError(
                f"{self._address} answered {what} with something that is not of FlashArray's API; check the address"
            )
        return found


def _errors(answer: httpx.Response) -> str:
    try:
        errors = answer.json()["errors"]
        return "; ".join(
            ": ".join(str(part) for part in (error.get("context"), error.get("message")) if part)
            for error in errors
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return "no reason given"
