"""One session of vCenter or ESXi, used by several threads.

pyVmomi's stubs share a connection and a cookie in ways that are not made for threads, so every call
borrows a stub of its own; all stubs carry the same session. A session that the server forgot is
renewed once for a request where a Login was given: the server refuses such a request before it does
anything, so repeating that one request is safe.
"""

from __future__ import annotations

import http.client
import threading
import xml.etree.ElementTree as ET
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from xml.parsers.expat import ExpatError

import httpx
from pyVmomi import SoapStubAdapter, VmomiSupport, vim, vmodl

from transports.errors import SessionExpiredError, TransportError
from transports.tls import pinned_context
from transports.vsphere.faults import translated
from transports.vsphere.model import CloneTicket, Endpoint, Login

# The newest API this product was written against. A newer server offers the older ones too, and
# answers as they were.
_NEWEST_MAJOR: Final = 8
_OLDEST_VERSION: Final = "vim.version.version10"  # 6.0
# Behind a load balancer idle connections vanish silently after a minute or more.
_IDLE_CONNECTION_S: Final = 50
_IDLE_STUBS: Final = 8

# Requests that change nothing: repeated once on a new connection, because a server may close an idle
# connection at the very moment when it is used again.
_HARMLESS: Final = frozenset({
    "RetrieveServiceContent", "RetrievePropertiesEx", "ContinueRetrievePropertiesEx", "CurrentTime",
    "QueryChangedDiskAreas", "CreateContainerView", "DestroyView", "FindByUuid", "FindAllByUuid",
    "QueryPerf", "QueryPerfProviderSummary", "HasPrivilegeOnEntities", "FetchUserPrivilegeOnEntities", "SessionIsActive",
})  # fmt: skip
_LOST: Final = (ConnectionError, http.client.RemoteDisconnected, http.client.BadStatusLine)


class Connection:
    """A borrowed stub: the server's content, and objects by moref that speak through it."""

    __slots__ = ("_content", "session", "stub")

    def __init__(self, session: Session, stub: _Stub) -> None:
        self.session = session
        self.stub = stub
        self._content: Any = None

    @property
    def content(self) -> Any:
        if self._content is None:
            self._content = self.root().RetrieveContent()
        return self._content

    def root(self) -> Any:
        return vim.ServiceInstance("ServiceInstance", self.stub)

    def object(self, kind: Any, moref: str) -> Any:
        return kind(moref, self.stub)

    def vm(self, moref: str) -> Any:
        return self.object(vim.VirtualMachine, moref)


class _Stub(SoapStubAdapter):  # type: ignore[misc]
    """A stub that wears the session's cookie and has it renewed."""

    def __init__(self, session: Session, **options: Any) -> None:
        super().__init__(**options)
        self._session = session

    def InvokeMethod(self, mo: Any, info: Any, args: Any, outerStub: Any = None) -> Any:  # noqa: N802, N803
        generation = self._session.dress(self)
        try:
            return self._send(mo, info, args, outerStub)
        except vim.fault.NotAuthenticated:
            self._session.renew(generation)
            self._session.dress(self)
            return self._send(mo, info, args, outerStub)

    def _send(self, mo: Any, info: Any, args: Any, outer: Any) -> Any:
        try:
            return super().InvokeMethod(mo, info, args, outer)
        except _LOST:
            self.DropConnections()
            if info.wsdlName not in _HARMLESS:
                raise
            return super().InvokeMethod(mo, info, args, outer)


class Session:
    """The session's certificate pin, API version, cookie and stubs."""

    def __init__(self, endpoint: Endpoint, auth: Login | CloneTicket, *, timeout_s: float) -> None:
        self.endpoint = endpoint
        self._auth = auth
        self._timeout_s = timeout_s
        self._peer = f"{endpoint.host}:{endpoint.port}"
        self._context = pinned_context(endpoint.thumbprint_sha256, peer=self._peer)
        self._lock = threading.Lock()
        self._login_lock = threading.Lock()
        self._idle: deque[Connection] = deque()
        self._cookie = ""
        self._generation = 0
        self._spent = False
        self._closed = False
        self.key = ""
        """Key of the user's session, for privilege questions."""
        with translated(f"log in to {self._peer}"):
            self._version = self._negotiate()
            self._log_in()

    @property
    def generation(self) -> int:
        """Grows with each login: what the server kept for the session before it (views) is gone."""
        return self._generation

    @property
    def login(self) -> Login | None:
        return self._auth if isinstance(self._auth, Login) else None

    # -- stubs

    @contextmanager
    def borrow(self, doing: str) -> Iterator[Connection]:
        """A connection for one call. Errors of the block leave it translated, as "cannot `doing`: ..."."""
        with self._lock:
            if self._closed:
                raise SessionExpiredError(f"cannot {doing}: the session with {self._peer} was closed")
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = Connection(self, self._new_stub())
        try:
            with translated(doing):
                yield connection
        finally:
            self._give_back(connection)

    def _give_back(self, connection: Connection) -> None:
        with self._lock:
            keep = not self._closed and len(self._idle) < _IDLE_STUBS
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.stub.DropConnections()

    def dress(self, stub: _Stub) -> int:
        with self._lock:
            stub.cookie = self._cookie
            return self._generation

    def renew(self, generation: int) -> None:
        """Log in again unless another thread has done so since `generation`."""
        with self._login_lock:
            if self._generation != generation:
                return
            self._log_in()

    def http(self) -> httpx.Client:
        """An HTTP client held to the same certificate, without any login. The caller closes it."""
        return httpx.Client(
            base_url=f"https://{_bracketed(self.endpoint.host)}:{self.endpoint.port}",
            verify=self._context,
            timeout=httpx.Timeout(self._timeout_s, connect=10.0),
            trust_env=False,
            follow_redirects=False,
        )

    def cookie_header(self) -> str:
        """The session's cookie alone, for the server's plain HTTP doors."""
        with self._lock:
            return self._cookie.split(";", 1)[0]

    def close(self) -> None:
        """Log out. Never raises for a server that is gone."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            idle = list(self._idle)
            self._idle.clear()
        stub = self._plain_stub()
        stub.cookie = self._cookie
        try:
            content = vim.ServiceInstance("ServiceInstance", stub).RetrieveContent()
            content.sessionManager.Logout()
        except (vmodl.MethodFault, OSError, http.client.HTTPException, ExpatError, TransportError):
            pass  # the server forgets an idle session by itself
        finally:
            stub.DropConnections()
            for connection in idle:
                connection.stub.DropConnections()

    # -- login

    def _log_in(self) -> None:
        if isinstance(self._auth, CloneTicket) and self._spent:
            raise SessionExpiredError(
                f"{self._peer} no longer knows this session, and its one-time ticket is spent;"
                " the backup server must hand out a new one"
            )
        stub = self._plain_stub()
        try:
            manager = vim.ServiceInstance("ServiceInstance", stub).RetrieveContent().sessionManager
            if isinstance(self._auth, CloneTicket):
                self._spent = True
                user = manager.CloneSession(self._auth.ticket.reveal())
            else:
                user = manager.Login(self._auth.username, self._auth.password.reveal(), None)
        finally:
            stub.DropConnections()
        with self._lock:
            self._cookie = stub.cookie
            self._generation += 1
            self.key = str(user.key)

    def _options(self) -> dict[str, Any]:
        return {
            "host": self.endpoint.host,
            "port": self.endpoint.port,
            "version": self._version,
            "sslContext": self._context,
            "poolSize": 1,
            "connectionPoolTimeout": _IDLE_CONNECTION_S,
            "httpConnectionTimeout": self._timeout_s,
        }

    def _plain_stub(self) -> SoapStubAdapter:
        return SoapStubAdapter(**self._options())

    def _new_stub(self) -> _Stub:
        return _Stub(self, **self._options())

    def _negotiate(self) -> str:
        """The newest API version that server and pyVmomi share, not newer than ours."""
        with self.http() as client:
            answer = client.get("/sdk/vimServiceVersions.xml")
        if answer.status_code != httpx.codes.OK:
            return _OLDEST_VERSION
        return choose_version(answer.text)


def choose_version(document: str) -> str:
    """pyVmomi's name for the version to speak, from the server's vimServiceVersions.xml."""
    try:
        root = ET.fromstring(document)  # noqa: S314 (the certificate was checked; expat expands no files)
    except ET.ParseError:
        return _OLDEST_VERSION
    offered: set[str] = set()
    for namespace in root.iter("namespace"):
        if (namespace.findtext("name") or "").strip() == "urn:vim25":
            offered.update((version.text or "").strip() for version in namespace.iter("version"))
    known = [
        (numbers, name)
        for name, version_id in VmomiSupport.versionIdMap.items()
        if name.startswith("vim.version.") and version_id in offered
        if (numbers := _numbers(version_id)) and numbers[0] <= _NEWEST_MAJOR
    ]
    return max(known)[1] if known else _OLDEST_VERSION


def _numbers(version_id: str) -> tuple[int, ...]:
    parts = version_id.split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
