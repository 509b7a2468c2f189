"""The door to the server: its REST API over httpx."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from backup_server.cli.exits import CliError, Exit

if TYPE_CHECKING:
    import httpx

PREFIX: Final = "/api/v1"
PAGE_ITEMS: Final = 1000
TIMEOUT_S: Final = 60.0
SLOW_TIMEOUT_S: Final = 600.0
"""For requests in which the server talks to a vCenter or opens a repository."""


class ApiError(CliError):
    """The server answered with its error envelope."""

    def __init__(self, status: int, code: str, message: str, details: dict[str, Any]) -> None:
        super().__init__(message)
        self.status = status
        self.error_code = code
        self.details = details


def default_data_dir() -> Path:
    """`/var/lib/vmhaul` for root, `~/.local/share/vmhaul` for everybody else.

    The same as `backup_server.config.default_data_dir` (a test holds them together), without loading
    the settings' libraries.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/vmhaul")
    home = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(home) / "vmhaul"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    url: str
    token: str = field(repr=False)


def find_server(data: Path | None, server: str | None, token_file: Path | None) -> ServerAddress:
    """Where the server is: as told by `--server`, or by `run/server.json` of the data directory."""
    if server:
        if token_file is None:
            raise CliError(
                "--server needs --token-file FILE (or VMHAUL_TOKEN_FILE) with the API's token",
                Exit.USAGE,
            )
        return ServerAddress(url=server.rstrip("/"), token=_read_token(token_file))
    directory = data or default_data_dir()
    path = directory / "run" / "server.json"
    try:
        facts = json.loads(path.read_text())
        return ServerAddress(url=facts["url"].rstrip("/"), token=facts["token"])
    except FileNotFoundError:
        raise CliError(
            f"no server runs on the data directory {directory}: start it with "
            f"`vmhaul up --data {directory}`, or name another with --data or --server",
            Exit.UNREACHABLE,
        ) from None
    except PermissionError:
        raise CliError(
            f"{path} may not be read by this user: run vmhaul as the user that runs `vmhaul up`"
        ) from None
    except OSError as error:
        raise CliError(
            f"{path} cannot be read ({error.strerror}): name the server's data directory with --data"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CliError(
            f"{path} is not readable as JSON with url and token: start `vmhaul up` again"
        ) from error


def _read_token(path: Path) -> str:
    try:
        text = path.read_text().strip()
    except OSError as error:
        raise CliError(f"the token file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        text = "\0"
    try:
        if text.startswith("{"):  # a copied server.json will do
            text = str(json.loads(text).get("token", ""))
    except ValueError:
        text = "\0"
    if not text:
        raise CliError(f"the token file {path} is empty")
    if not text.isascii() or not text.isprintable():
        # No header could carry it, and it is not shown: it may be another secret.
        raise CliError(
            f"the token file {path} holds no token: give it the one line of the server's api-token file, or a copy of its "
            "run/server.json"
        )
    return text


class ApiClient:
    """One connection to the API. Every method answers decoded JSON, or raises CliError."""

    def __init__(self, address: ServerAddress, *, transport: httpx.BaseTransport | None = None) -> None:
        import httpx

        self.url = address.url
        try:
            self._http = httpx.Client(
                base_url=address.url + PREFIX,
                headers={"Authorization": f"Bearer {address.token}"},
                timeout=TIMEOUT_S,
                transport=transport,
                trust_env=not _is_loopback(address.url),
            )
        except httpx.InvalidURL as error:
            raise CliError(f"'{address.url}' is not a URL: {error}", Exit.USAGE) from error

    def get(self, path: str, *, slow: bool = False, **query: Any) -> Any:
        return self._call("GET", path, query=query, slow=slow)

    def post(self, path: str, body: dict[str, Any] | None = None, *, slow: bool = False) -> Any:
        return self._call("POST", path, body=body if body is not None else {}, slow=slow)

    def patch(self, path: str, body: dict[str, Any], *, slow: bool = False) -> Any:
        return self._call("PATCH", path, body=body, slow=slow)

    def delete(self, path: str, **query: Any) -> Any:
        return self._call("DELETE", path, query=query, slow=True)

    def items(self, path: str, *, limit: int | None = None, **query: Any) -> Iterator[dict[str, Any]]:
        """All items of a list, over its pages, at most `limit`."""
        left = limit
        cursor: str | None = None
        while left is None or left > 0:
            count = PAGE_ITEMS if left is None else min(PAGE_ITEMS, left)
            page = self.get(path, **query, limit=count, cursor=cursor)
            yield from page["items"]
            cursor = page.get("next")
            if cursor is None:
                return
            left = None if left is None else left - len(page["items"])

    def close(self) -> None:
        self._http.close()

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        body: dict[str, Any] | None = None,
        slow: bool = False,
    ) -> Any:
        import httpx

        params = {key: _query_text(value) for key, value in (query or {}).items() if value is not None}
        try:
            response = self._http.request(
                method, path, params=params, json=body, timeout=SLOW_TIMEOUT_S if slow else TIMEOUT_S
            )
        except httpx.TimeoutException as error:
            raise CliError(
                f"the server at {self.url} did not answer in time: see its log, then try again",
                Exit.UNREACHABLE,
            ) from error
        except (httpx.TransportError, httpx.UnsupportedProtocol) as error:
            raise CliError(
                f"the server at {self.url} cannot be reached ({str(error) or type(error).__name__}): "
                "is `vmhaul up` running there?",
                Exit.UNREACHABLE,
            ) from error
        if response.is_success:
            return response.json() if response.content else None
        raise _error_of(response)


def _error_of(response: httpx.Response) -> CliError:
    try:
        error = response.json()["error"]
        message, code, details = error["message"], error["code"], error.get("details") or {}
    except (ValueError, KeyError, TypeError):
        return CliError(
            f"{response.request.url} answered {response.status_code} and not as a vmhaul server does: "
            "is this the right address?"
        )
    if code == "unauthorized":
        message += " (the token is in run/server.json of the server's data directory)"
    return ApiError(response.status_code, code, message, details)


def _is_loopback(url: str) -> bool:
    # Proxy variables of the environment must not take local calls elsewhere.
    return any(f"//{name}" in url for name in ("127.", "localhost", "[::1]"))


def _query_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def part(ref: str) -> str:
    """A name or id as one segment of a path. CliError for what cannot be one."""
    from urllib.parse import quote

    if ref in {"", ".", ".."}:
        raise CliError(f"'{ref}' is no name and no id: nothing is called so", Exit.USAGE)
    return quote(ref, safe="")
