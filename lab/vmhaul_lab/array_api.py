"""The REST API of the lab's disk array: what FlashArray documents of REST 2.x, as far as backups need it.

Facts are from the OpenAPI description of FlashArray REST 2.2. Served here, below `/api`:

    GET    /api_version                                           {"version": ["1.19", "2.2", ...]}, no login
    POST   /2.2/login           header api-token                  answer's header x-auth-token
    POST   /2.2/logout          header x-auth-token
    GET    /2.2/arrays                                            name, os, version
    GET    /2.2/volumes         ?names&destroyed&limit&continuation_token
    POST   /2.2/volumes         ?names=NEW    {"source": {"name": "VOL.SUFFIX"}}
    PATCH  /2.2/volumes         ?names        {"destroyed": true}     refused while it is connected
    DELETE /2.2/volumes         ?names                            a destroyed one is eradicated
    GET    /2.2/volume-snapshots ?names&source_names&destroyed&limit&continuation_token
    POST   /2.2/volume-snapshots ?source_names=A,B  {"suffix": "SUFFIX"}
    PATCH  /2.2/volume-snapshots ?names       {"destroyed": true}
    DELETE /2.2/volume-snapshots ?names
    GET    /2.2/hosts           ?names
    GET    /2.2/connections     ?host_names&volume_names
    POST   /2.2/connections     ?host_names&volume_names
    DELETE /2.2/connections     ?host_names&volume_names

Errors are 400 with {"errors": [{"context": NAME, "message": TEXT}]}, 401 without a session. Contents are a
backend's business: `ArrayBackend`.
"""

import itertools
import json
import re
import secrets
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, Self
from urllib.parse import parse_qs, urlsplit

VERSIONS = ["1.19", "2.0", "2.2", "2.26"]
PAGE_ITEMS = 1000
_SUFFIX = re.compile(r"(?=.{1,63}$)(?=.*[A-Za-z-])[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?")
_VOLUME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")


class ArrayBackend(Protocol):
    """What lies behind the names: contents, and what a host sees of them."""

    def freeze(self, volume: str, snapshot: str) -> None:
        """Keep what `volume` holds now under the full name of a snapshot, "VOL.SUFFIX"."""

    def forget(self, snapshot: str) -> None: ...

    def clone(self, snapshot: str, volume: str, serial: str) -> None:
        """A new volume that holds what the snapshot holds."""

    def remove(self, volume: str) -> None: ...

    def connect(self, volume: str, host: str, serial: str) -> None:
        """The host sees the volume from now on, as naa.624a9370 and the serial in lower case."""

    def disconnect(self, volume: str, host: str) -> None: ...


class NoContents:
    """A backend for those who look at the API alone."""

    def freeze(self, volume: str, snapshot: str) -> None: ...
    def forget(self, snapshot: str) -> None: ...
    def clone(self, snapshot: str, volume: str, serial: str) -> None: ...
    def remove(self, volume: str) -> None: ...
    def connect(self, volume: str, host: str, serial: str) -> None: ...
    def disconnect(self, volume: str, host: str) -> None: ...


class RefusedError(Exception):
    def __init__(self, context: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.context = context
        self.status = status


@dataclass
class ArrayState:
    """What the array remembers. All calls under `lock`."""

    backend: ArrayBackend
    api_token: str
    hosts: list[str] = field(default_factory=list)
    volumes: dict[str, dict[str, Any]] = field(default_factory=dict)
    snapshots: dict[str, dict[str, Any]] = field(default_factory=dict)
    connections: set[tuple[str, str]] = field(default_factory=set)
    """Pairs of host and volume."""
    sessions: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    """"METHOD path?query" of every call, for tests."""
    page_items: int = PAGE_ITEMS
    lock: threading.RLock = field(default_factory=threading.RLock)
    _serials: Any = field(default_factory=lambda: itertools.count(0x11010))

    def add_volume(self, name: str, size_bytes: int, *, serial: str = "") -> str:
        """A volume that was there before; its serial number."""
        with self.lock:
            serial = serial or self._new_serial()
            self.volumes[name] = _volume(name, serial, size_bytes, None)
            return serial

    def _new_serial(self) -> str:
        return f"C0FFEE0012345678{next(self._serials):08X}"

    # -- what the routes do

    def create_volume(self, name: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        if name in self.volumes:
            raise RefusedError(name, "Volume already exists.")
        if not _VOLUME.fullmatch(name):
            raise RefusedError(name, "Invalid volume name.")
        source = str((body.get("source") or {}).get("name", ""))
        snapshot = self.snapshots.get(source)
        if snapshot is None or snapshot["destroyed"]:
            raise RefusedError(source, "Snapshot does not exist.")
        serial = self._new_serial()
        self.backend.clone(source, name, serial)
        # Documented as the originating volume, not as the snapshot.
        new = _volume(name, serial, snapshot["provisioned"], snapshot["source"]["name"])
        self.volumes[name] = new
        return [new]

    def patch_volume(self, name: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        volume = self._known(self.volumes, name, "Volume")
        if body.get("destroyed") and any(connected == name for _, connected in self.connections):
            raise RefusedError(name, "Cannot destroy volume because it is connected to hosts.")
        volume["destroyed"] = bool(body.get("destroyed", volume["destroyed"]))
        return [volume]

    def delete_volume(self, name: str) -> None:
        self._eradicable(self.volumes, name, "Volume")
        self.backend.remove(name)
        del self.volumes[name]

    def create_snapshots(self, names: list[str], body: dict[str, Any]) -> list[dict[str, Any]]:
        suffix = str(body.get("suffix", ""))
        if not _SUFFIX.fullmatch(suffix):
            raise RefusedError(suffix, "Invalid snapshot suffix.")
        for name in names:  # all or nothing
            if self._known(self.volumes, name, "Volume")["destroyed"]:
                raise RefusedError(name, "Volume has been destroyed.")
            if f"{name}.{suffix}" in self.snapshots:
                raise RefusedError(f"{name}.{suffix}", "Snapshot already exists.")
        made = []
        for name in names:
            full = f"{name}.{suffix}"
            self.backend.freeze(name, full)
            made.append(
                {
                    "name": full,
                    "suffix": suffix,
                    "serial": self._new_serial(),
                    "source": {"name": name, "id": self.volumes[name]["id"]},
                    "provisioned": self.volumes[name]["provisioned"],
                    "created": 1_760_000_000_000,
                    "destroyed": False,
                }
            )
            self.snapshots[full] = made[-1]
        return made

    def patch_snapshot(self, name: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        snapshot = self._known(self.snapshots, name, "Snapshot")
        snapshot["destroyed"] = bool(body.get("destroyed", snapshot["destroyed"]))
        return [snapshot]

    def delete_snapshot(self, name: str) -> None:
        self._eradicable(self.snapshots, name, "Snapshot")
        self.backend.forget(name)
        del self.snapshots[name]

    def connect(self, host: str, volume: str) -> list[dict[str, Any]]:
        found = self._known(self.volumes, volume, "Volume")
        if host not in self.hosts:
            raise RefusedError(host, "Host does not exist.")
        if (host, volume) in self.connections:
            raise RefusedError(volume, "Connection already exists.")
        self.backend.connect(volume, host, found["serial"])
        self.connections.add((host, volume))
        return [_connection(host, volume)]

    def disconnect(self, host: str, volume: str) -> None:
        if (host, volume) not in self.connections:
            raise RefusedError(volume, "Connection does not exist.")
        self.backend.disconnect(volume, host)
        self.connections.discard((host, volume))

    @staticmethod
    def _known(among: dict[str, dict[str, Any]], name: str, noun: str) -> dict[str, Any]:
        if name not in among:
            raise RefusedError(name, f"{noun} does not exist.")
        return among[name]

    def _eradicable(self, among: dict[str, dict[str, Any]], name: str, noun: str) -> None:
        if not self._known(among, name, noun)["destroyed"]:
            raise RefusedError(name, f"{noun} is not destroyed.")


def _volume(name: str, serial: str, size_bytes: int, source: str | None) -> dict[str, Any]:
    return {
        "id": f"id-{serial.lower()}",
        "name": name,
        "serial": serial,
        "provisioned": size_bytes,
        "destroyed": False,
        "subtype": "regular",
        "source": {"name": source} if source else {},
    }


def _connection(host: str, volume: str) -> dict[str, Any]:
    return {"host": {"name": host}, "volume": {"name": volume}, "lun": 7}


Fault = Callable[[str, str], tuple[int, dict[str, str]] | None]
"""Method and path in; a status and headers to answer instead, or None. May wait, to be slow."""


class ArrayServer:
    """The API on a free loopback port, with TLS when a context is given."""

    def __init__(
        self, state: ArrayState, *, context: ssl.SSLContext | None = None, fault: Fault | None = None
    ) -> None:
        self.state = state
        self.fault = fault
        self.lost: Fault | None = None
        """As `fault`, after the call was carried out: its answer is lost."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="array-api", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(
        self, method: str, path: str, query: dict[str, str], body: dict[str, Any], token: str
    ) -> Any:
        state = self.state
        if path == "/api/api_version":
            return {"version": VERSIONS}
        version, _, noun = path.removeprefix("/api/").partition("/")
        if version not in VERSIONS:
            raise RefusedError(version, "Unsupported API version.", 404)
        if token not in state.sessions:
            raise RefusedError("", "Invalid session.", 401)
        names = [name for name in query.get("names", "").split(",") if name]
        routes: dict[tuple[str, str], Callable[[], Any]] = {
            ("POST", "logout"): lambda: state.sessions.discard(token),
            ("GET", "arrays"): lambda: [{"name": "lab", "os": "Purity//FA", "version": "6.4.10"}],
            ("GET", "volumes"): lambda: self._list(state.volumes, query),
            ("POST", "volumes"): lambda: state.create_volume(_single(names), body),
            ("PATCH", "volumes"): lambda: state.patch_volume(_single(names), body),
            ("DELETE", "volumes"): lambda: state.delete_volume(_single(names)),
            ("GET", "volume-snapshots"): lambda: self._list(state.snapshots, query),
            ("POST", "volume-snapshots"): lambda: state.create_snapshots(
                query.get("source_names", "").split(","), body
            ),
            ("PATCH", "volume-snapshots"): lambda: state.patch_snapshot(_single(names), body),
            ("DELETE", "volume-snapshots"): lambda: state.delete_snapshot(_single(names)),
            ("GET", "hosts"): lambda: [
                {"name": host} for host in state.hosts if not names or host in names
            ],
            ("GET", "connections"): lambda: [
                _connection(host, volume)
                for host, volume in sorted(state.connections)
                if query.get("volume_names", volume) == volume and query.get("host_names", host) == host
            ],
            ("POST", "connections"): lambda: state.connect(
                query.get("host_names", ""), query.get("volume_names", "")
            ),
            ("DELETE", "connections"): lambda: state.disconnect(
                query.get("host_names", ""), query.get("volume_names", "")
            ),
        }
        route = routes.get((method, noun))
        if route is None:
            raise RefusedError(path, "There is no such call.", 404)
        with state.lock:
            found = route()
        return found if isinstance(found, dict) else {"items": found or []}

    def _list(self, among: dict[str, dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
        names = query.get("names", "").split(",") if "names" in query else list(among)
        if missing := [name for name in names if name not in among]:
            raise RefusedError(missing[0], "Object does not exist.")
        sources = query.get("source_names", "").split(",") if "source_names" in query else None
        wanted = [
            among[name]
            for name in sorted(names)
            if ("destroyed" not in query or among[name]["destroyed"] == (query["destroyed"] == "true"))
            and (sources is None or among[name]["source"].get("name") in sources)
        ]
        start = int(query.get("continuation_token", "0"))
        items = wanted[start : start + min(self.state.page_items, int(query.get("limit", "1000")))]
        more = start + len(items) < len(wanted)
        answer: dict[str, Any] = {"items": items, "more_items_remaining": more}
        return {**answer, "continuation_token": str(start + len(items))} if more else answer


def _single(names: list[str]) -> str:
    if len(names) != 1:
        raise RefusedError("names", "Exactly one name is expected here.")
    return names[0]


def _handler(server: ArrayServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet: two would wait for each other's acknowledgement

        def log_message(self, *_: object) -> None:
            """The state's list of calls is the log."""

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            length = int(self.headers.get("content-length") or 0)
            text = self.rfile.read(length) if length else b""
            server.state.calls.append(f"{self.command} {self.path}")
            injected = server.fault(self.command, self.path) if server.fault else None
            if injected is not None:
                self._send(injected[0], {"errors": [{"message": "injected"}]}, injected[1])
                return
            if parts.path.endswith("/login"):
                self._login()
                return
            lost = server.lost(self.command, self.path) if server.lost else None
            token = self.headers.get("x-auth-token", "")
            try:
                body = json.loads(text) if text else {}
                answer = server.answer(self.command, parts.path, query, body, token)
            except RefusedError as refused:
                error = {"context": refused.context, "message": str(refused)}
                self._send(refused.status, {"errors": [error]}, {})
                return
            if lost is not None:
                self._send(lost[0], {"errors": [{"message": "lost"}]}, lost[1])
                return
            self._send(200, answer, {})

        def _login(self) -> None:
            if self.headers.get("api-token") != server.state.api_token:
                self._send(401, {"errors": [{"message": "Invalid API token."}]}, {})
                return
            token = secrets.token_hex(16)
            server.state.sessions.add(token)
            self._send(200, {"items": [{"username": "vmhaul"}]}, {"x-auth-token": token})

        def _send(self, status: int, answer: dict[str, Any], headers: dict[str, str]) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 - the names that http.server looks for

    return Handler
