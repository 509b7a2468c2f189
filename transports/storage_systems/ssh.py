"""Commands on a storage host, over SSH. A host key is pinned by its fingerprint, as a certificate is elsewhere.

Every command is a list of words; each is quoted for the remote shell, so a word is never more than a word.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from transports.errors import (
    PeerIdentityError,
    PermanentTransportError,
    TransientTransportError,
)
from transports.vsphere.model import Secret

if TYPE_CHECKING:
    import asyncssh

SSH_PORT: Final = 22
CONNECT_S: Final = 20.0
COMMAND_S: Final = 120.0
"""A snapshot waits for what is being written to reach the disks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a command ended."""

    command: str
    status: int
    output: str
    errors: str


class Shell(Protocol):
    """Commands on one host, over one connection."""

    def run(self, words: Sequence[str]) -> Ran: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SshHost:
    """How a host is reached."""

    host: str
    port: int = SSH_PORT
    fingerprint: str
    """"SHA256:…" of the host key, confirmed by a person."""
    user: str
    password: Secret | None = None
    private_key: Secret | None = None
    command_s: float = field(default=COMMAND_S)

    @contextmanager
    def session(self) -> Iterator[Shell]:
        """A connection for as long as the context lasts. Errors of transports.errors, also of its commands."""
        ssh = _library()
        with self._translated(ssh), asyncio.Runner() as loop:
            connection = loop.run(asyncio.wait_for(self._connect(ssh), CONNECT_S))
            try:
                yield _OpenShell(loop, connection, self.command_s)
            finally:
                connection.close()
                loop.run(connection.wait_closed())

    @contextmanager
    def _translated(self, ssh: Any) -> Iterator[None]:
        try:
            yield
        except ssh.HostKeyNotVerifiable as error:
            raise PeerIdentityError(
                f"{self.host} shows another host key than {self.fingerprint}, which was confirmed; nothing was sent. "
                "If the key was replaced on purpose, confirm the new one"
            ) from error
        except ssh.PermissionDenied as error:
            raise PermanentTransportError(
                f"{self.host} refused the login of {self.user}; check the user, and the key or password"
            ) from error
        except (ssh.Error, OSError, TimeoutError) as error:
            raise TransientTransportError(
                f"{self.host}:{self.port} did not answer over SSH ({error or type(error).__name__}); check address and "
                "network"
            ) from error

    async def _connect(self, ssh: Any) -> asyncssh.SSHClientConnection:
        fingerprint = self.fingerprint

        class Pinned(ssh.SSHClient):  # type: ignore[misc]
            def validate_host_public_key(self, host: str, addr: str, port: int, key: Any) -> bool:
                del host, addr, port
                return bool(key.get_fingerprint("sha256") == fingerprint)

        connection: asyncssh.SSHClientConnection = await ssh.connect(
            self.host,
            self.port,
            username=self.user,
            password=None if self.password is None else self.password.reveal(),
            client_keys=self._keys(ssh),
            client_factory=Pinned,
            # Nobody's files: no known host, no configuration, no agent of the user that runs the server.
            known_hosts=([], [], []),
            config=None,
            agent_path=None,
            connect_timeout=CONNECT_S,
        )
        return connection

    def _keys(self, ssh: Any) -> list[Any] | None:
        if self.private_key is None:
            return None
        try:
            return [ssh.import_private_key(self.private_key.reveal())]
        except ssh.KeyImportError as error:
            # Its text may repeat lines of what was given.
            raise PermanentTransportError(
                "the private key cannot be read; give one in OpenSSH or PEM form, without a passphrase"
            ) from error


class _OpenShell:
    def __init__(
        self, loop: asyncio.Runner, connection: asyncssh.SSHClientConnection, command_s: float
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._command_s = command_s

    def run(self, words: Sequence[str]) -> Ran:
        command = shlex.join(words)
        ran = self._loop.run(self._run(command))
        return Ran(
            command=command,
            status=-1 if ran.exit_status is None else ran.exit_status,
            output=str(ran.stdout or ""),
            errors=str(ran.stderr or "").strip(),
        )

    async def _run(self, command: str) -> asyncssh.SSHCompletedProcess:
        return await self._connection.run(command, check=False, timeout=self._command_s)


def host_fingerprint(host: str, port: int = SSH_PORT) -> str:
    """Of the host key that is shown there, without trusting it. TransientTransportError when nobody answers."""
    ssh = _library()

    async def look() -> Any:
        return await asyncio.wait_for(ssh.get_server_host_key(host, port, config=None), CONNECT_S)

    try:
        key = asyncio.run(look())
    except (ssh.Error, OSError, TimeoutError) as error:
        raise TransientTransportError(
            f"no SSH server answered at {host}:{port} ({error or type(error).__name__}); check address, port and firewall"
        ) from error
    if key is None:
        raise TransientTransportError(f"{host}:{port} showed no host key")
    return str(key.get_fingerprint("sha256"))


def _library() -> Any:
    try:
        import asyncssh
    except ImportError as error:
        raise PermanentTransportError(
            "SSH to storage hosts needs the library asyncssh; install vmhaul[storage]"
        ) from error
    return asyncssh
