"""The REST API as the rounds use it."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
TIMEOUT_S = 20.0


class AwayError(Exception):
    """The server does not answer now."""


class RefusedError(Exception):
    """The server answered with an error."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(f"{status}: {error}")
        self.status = status
        self.details: dict[str, Any] = error.get("details") or {}


class Api:
    """One server's. Where it listens is read anew for every call."""

    def __init__(self, data_dir: Path, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._file = data_dir / "run" / "server.json"

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The answer. AwayError or RefusedError."""
        try:
            server = json.loads(self._file.read_text())
            request = urllib.request.Request(
                f"{server['url']}/api/v1{path}",
                data=None if body is None else json.dumps(body).encode(),
                method=method,
            )
            request.add_header("Authorization", f"Bearer {server['token']}")
            request.add_header("Content-Type", "application/json")
            with _OPENER.open(request, timeout=self._timeout_s) as answer:
                text = answer.read()
            return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            with error:
                said = error.read()
            if error.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
                raise AwayError(f"{method} {path}: {error.code} {said[:300]!r}") from error
            raise RefusedError(error.code, json.loads(said)["error"]) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise AwayError(f"{method} {path}: {error}") from error

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    def post(self, path: str, body: Any = None) -> Any:
        return self.call("POST", path, {} if body is None else body)
