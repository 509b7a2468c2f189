"""A machine that is reached over WinRM: HTTPS alone, the listener's certificate pinned, NTLM or Kerberos.

Scripts come from files of vmhaul's, their parameters are objects. What the machine answers is not trusted: answers are
bounded, and cleaned before they are shown or kept.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import resources
from types import SimpleNamespace
from typing import Any, Final, Protocol

from backup_server.deploy.machine import COMMAND_S, Ran, StepError
from backup_server.deploy.said import MOST_BYTES, Kept, clean
from backup_server.deploy.ssh import Login, SshAddress
from backup_server.errors import ConflictError, InvalidError, UnavailableError
from transports.errors import PeerIdentityError, TransientTransportError
from transports.tls import PeerCertificate, pinned_context
from transports.vsphere.model import Secret

WINRM_PORT: Final = 5986
CONNECT_S: Final = 20
_POLL_S: Final = 20
"""How long the machine may hold an answer back while a script says nothing."""
_ENVELOPE_BYTES: Final = 500 << 10
"""What WinRM takes since Windows Server 2016."""
_ANSWER_BYTES: Final = 16 << 20
_PIECE_BYTES: Final = 64 << 10
_COMMON: Final = "common"
PREFIX: Final = "SHA256:"
"""Before thumbprints, as before the fingerprints of SSH's host keys."""


class WindowsMachine(Protocol):
    """One machine, for as long as its connection lasts. Raises UnavailableError when it does not answer."""

    @property
    def name(self) -> str: ...

    def call(
        self, script: str, parameters: Mapping[str, Any], *, timeout_s: float = COMMAND_S
    ) -> Ran: ...


@cache
def script_text(name: str) -> str:
    return (resources.files(__package__) / "scripts" / f"{name}.ps1").read_text(encoding="utf-8")


def thumbprint_of(host: str, port: int) -> str:
    """Of the certificate that is shown there, as in "SHA256:AB:CD:...", without trusting it. UnavailableError when nobody answers."""
    try:
        return PREFIX + PeerCertificate.fetch(host, port, timeout_s=CONNECT_S).sha256
    except TransientTransportError as error:
        raise UnavailableError(
            f"{clean(str(error).encode())}; WinRM needs a listener for HTTPS there"
        ) from error


@contextmanager
def connected(address: SshAddress, login: Login) -> Iterator[WinRmMachine]:
    """The machine, ready to run scripts as an administrator.

    ConflictError when another certificate is shown than the confirmed one, InvalidError when the login is refused,
    UnavailableError when it does not answer.
    """
    if login.password is None:
        raise InvalidError(
            "WinRM takes a user and a password: give the password",
            details={"password": "is needed for Windows"},
        )
    machine = WinRmMachine(_library(), address, login.user, login.password)
    try:
        machine.open()
        yield machine
    finally:
        machine.close()


class WinRmMachine:
    """Runs scripts one after the other in one runspace; after a lost connection the next one opens another."""

    def __init__(
        self, library: SimpleNamespace, address: SshAddress, user: str, password: Secret
    ) -> None:
        self.name = address.host
        self._library = library
        self._address = address
        self._user = user
        self._password = password
        self._connection: Any = None
        self._adapter: Any = None
        self._pool: Any = None

    @property
    def _where(self) -> str:
        return f"{self._address.host}:{self._address.port}"

    def call(self, script: str, parameters: Mapping[str, Any], *, timeout_s: float = COMMAND_S) -> Ran:
        self.open()
        return self._run(script_text(script), dict(parameters), script, timeout_s)

    def open(self) -> None:
        if self._pool is not None:
            return
        with self._troubles():
            self._connection, self._adapter = _connection(
                self._library, self._address, self._user, self._password
            )
            self._adapter.until = time.monotonic() + COMMAND_S
            self._pool = self._library.RunspacePool(self._connection, no_profile=True)
            self._pool.open()
        ran = self._run(script_text(_COMMON), {}, _COMMON, COMMAND_S)
        if not ran.ok:
            self._drop()
            raise UnavailableError(f"{self.name} runs no scripts of PowerShell: {ran.why()}")

    def close(self) -> None:
        """Not waited for beyond one answer: whoever is there may never give one."""
        library = self._library
        with contextlib.suppress(*library.troubles):
            if self._pool is not None and self._pool.state == library.OPENED:
                self._adapter.until = time.monotonic() + CONNECT_S
                self._pool.close()
        self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._pool = self._connection = None

    def _run(self, text: str, parameters: dict[str, Any], what: str, timeout_s: float) -> Ran:
        with self._troubles():
            shell = self._library.PowerShell(self._pool)
            # In no scope of its own: what the first script defines is there for the others.
            shell.add_script(text, use_local_scope=what != _COMMON)
            shell.add_parameters(parameters)
            output = Kept()
            until = time.monotonic() + timeout_s
            self._adapter.until = until + 2 * _POLL_S
            shell.begin_invoke()
            while shell.state == self._library.RUNNING:
                shell.poll_invoke()
                _take(self.name, shell, output)
                if time.monotonic() > until:
                    raise UnavailableError(
                        f"{self.name}: the step '{what}' did not end within {timeout_s:.0f} s"
                    )
            _take(self.name, shell, output)
            errors = Kept()
            for one in shell.streams.error:
                errors.add(f"{one}\n".encode(errors="replace"))
            done = shell.state == self._library.COMPLETED and not shell.streams.error
            shell.close()
        return Ran(status=0 if done else 1, output=output.text(), errors=errors.text())

    @contextmanager
    def _troubles(self) -> Iterator[None]:
        """What goes wrong with the connection, in words of ours. Nothing of it is used again."""
        library = self._library
        try:
            yield
        except PeerIdentityError as error:
            self._drop()
            raise ConflictError(str(error)) from error
        except library.AuthenticationError as error:
            self._drop()
            raise InvalidError(
                f"{self._where} refused the login of {self._user}; check the user (DOMAIN\\name, name@domain, or a local "
                "one) and the password, and that WinRM lets it in",
                details={"username": "the login was refused"},
            ) from error
        except library.troubles as error:
            self._drop()
            said = clean(str(error).encode(errors="replace"))[:400]
            raise UnavailableError(
                f"{self._where} did not answer over WinRM as it should ({said or type(error).__name__}); "
                "check address, network and listener, and try again"
            ) from error
        except (UnavailableError, StepError):
            self._drop()
            raise


def _take(name: str, shell: Any, output: Kept) -> None:
    """Out of the library's list, which would grow."""
    taken, shell.output[:] = list(shell.output), []
    for one in taken:
        output.add(f"{one}\n".encode(errors="replace"))
    for stream in ("verbose", "debug", "warning", "information", "progress"):
        getattr(shell.streams, stream).clear()
    if output.total_bytes > MOST_BYTES or len(shell.streams.error) > _PIECE_BYTES:
        raise StepError(
            f"{name}: a step said more than {MOST_BYTES >> 20} MiB and was ended; look at what answers there"
        )


def _connection(
    library: SimpleNamespace, address: SshAddress, user: str, password: Secret
) -> tuple[Any, Any]:
    """And its adapter, whose `until` ends everything."""
    connection = library.WSMan(
        address.host,
        port=address.port,
        username=user,
        password=password.reveal(),
        ssl=True,
        auth="negotiate",
        # By the thumbprint instead, in every handshake.
        cert_validation=False,
        no_proxy=True,
        connection_timeout=CONNECT_S,
        operation_timeout=_POLL_S,
        read_timeout=_POLL_S + 10,
        max_envelope_size=_ENVELOPE_BYTES,
    )
    # What the libraries log holds what is sent, or what the machine says, as it says it. Their errors are raised, too.
    for chatty in ("pypsrp", "spnego"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)
    where = f"{address.host}:{address.port}"
    thumbprint = address.host_key.removeprefix(PREFIX)
    transport = connection.transport
    transport._suppress_library_warnings = lambda: None  # noqa: SLF001 - it would silence them in the whole process
    session = transport._build_session()  # noqa: SLF001 - the library has no way to hand one in
    session.trust_env = False
    session.max_redirects = 0
    session.adapters.clear()
    adapter = library.adapter(pinned_context(thumbprint, peer=where), thumbprint)
    session.mount("https://", adapter)
    transport.session = session
    return connection, adapter


@cache
def _library() -> SimpleNamespace:
    try:
        from pypsrp import exceptions
        from pypsrp.complex_objects import PSInvocationState, RunspacePoolState
        from pypsrp.powershell import PowerShell, RunspacePool
        from pypsrp.wsman import WSMan
        from requests import RequestException, Response
        from requests.adapters import HTTPAdapter
        from spnego.exceptions import SpnegoError
    except ImportError as error:
        raise ConflictError(
            "installing proxies over WinRM needs the library pypsrp; install vmhaul[deploy] on the server"
        ) from error

    class Bounded(Response):
        """An answer that ends at a limit."""

        def iter_content(self, chunk_size: Any = 1, decode_unicode: Any = False) -> Iterator[Any]:
            total_bytes = 0
            for piece in super().iter_content(chunk_size, decode_unicode):
                total_bytes += len(piece)
                if total_bytes > _ANSWER_BYTES:
                    raise RequestException(f"an answer of more than {_ANSWER_BYTES >> 20} MiB")
                adapter: Any = self.connection
                adapter.in_time()
                yield piece

    class Pinned(HTTPAdapter):
        def __init__(self, context: Any, thumbprint: str) -> None:
            self._tls = {"ssl_context": context, "assert_fingerprint": thumbprint}
            self.until = 0.0
            """By the monotonic clock: a machine that goes on answering nothing is left then."""
            super().__init__()

        def in_time(self) -> None:
            if time.monotonic() > self.until:
                raise RequestException("it was heard, and did not come to an end in time")

        def send(self, *args: Any, **more: Any) -> Any:
            self.in_time()
            return super().send(*args, **more)

        def init_poolmanager(
            self, connections: int, maxsize: int, block: bool = False, **more: Any
        ) -> None:
            super().init_poolmanager(connections, maxsize, block, **more, **self._tls)

        def build_response(self, req: Any, resp: Any) -> Any:
            response = super().build_response(req, resp)
            response.__class__ = Bounded
            return response

    return SimpleNamespace(
        WSMan=WSMan,
        RunspacePool=RunspacePool,
        PowerShell=PowerShell,
        OPENED=RunspacePoolState.OPENED,
        RUNNING=PSInvocationState.RUNNING,
        COMPLETED=PSInvocationState.COMPLETED,
        AuthenticationError=exceptions.AuthenticationError,
        adapter=Pinned,
        # SyntaxError: what is no XML. ValueError, LookupError, AttributeError: XML of another kind than was asked for.
        troubles=(
            exceptions.WinRMError,
            RequestException,
            SpnegoError,
            OSError,
            SyntaxError,
            ValueError,
            LookupError,
            AttributeError,
            TypeError,
        ),
    )
