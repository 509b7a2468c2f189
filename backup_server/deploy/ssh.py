"""A machine that is reached over SSH: host key pinned, root by itself or through sudo.

The connection lives on a thread of its own, which goes on answering while nothing is run: an upgrade may wait a day until
a proxy is drained, and servers and firewalls end connections that are silent.

Passwords go over the encrypted connection or a command's standard input, never into a command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeVar

from backup_server.deploy.machine import COMMAND_S, Ran, StepError
from backup_server.deploy.said import MOST_BYTES, Kept, reason_of
from backup_server.errors import ConflictError, InvalidError, UnavailableError
from transports.vsphere.model import Secret

T = TypeVar("T")

SSH_PORT: Final = 22
CONNECT_S: Final = 20.0
_SUDO_SILENT: Final = ("sudo", "-n", "--")
# -k: a remembered login would leave the password line to the command.
_SUDO_ASKING: Final = ("sudo", "-k", "-S", "-p", "", "--")


_AS_RUN: Final = ("env", "LC_ALL=C", "PYTHONSAFEPATH=1")
"""Before every command: messages in one language, and a Python that imports nothing from where the login happens to
stand: a `queue.py` in somebody's home would take the place of the library's.
"""
_WHO: Final = ("id", "-u")
_PIECE_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Who logs in, and with what. One of password, private key and agent; the rest is None."""

    user: str
    password: Secret | None = field(default=None, repr=False)
    private_key: Secret | None = field(default=None, repr=False)
    passphrase: Secret | None = field(default=None, repr=False)
    agent_path: str | None = None
    """Socket of an SSH agent of this machine's."""
    sudo_password: Secret | None = field(default=None, repr=False)
    """None: the login's own password, where sudo asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SshAddress:
    host: str
    port: int = SSH_PORT
    host_key: str
    """"SHA256:..." that a person confirmed."""


def host_key_of(host: str, port: int) -> str:
    """Fingerprint of the host key that is shown there, without trusting it. UnavailableError when nobody answers."""
    ssh = _library()

    async def look() -> Any:
        return await asyncio.wait_for(ssh.get_server_host_key(host, port, config=None), CONNECT_S)

    try:
        key = asyncio.run(look())
    except (ssh.Error, OSError, TimeoutError) as error:
        raise UnavailableError(
            f"no SSH server answered at {host}:{port} ({reason_of(error)}); "
            "check address, port and firewall"
        ) from error
    if key is None:
        raise UnavailableError(f"{host}:{port} showed no host key; check that it is an SSH server")
    return str(key.get_fingerprint("sha256"))


@contextmanager
def connected(address: SshAddress, login: Login) -> Iterator[SshMachine]:
    """The machine, ready to run commands as root.

    ConflictError when another host key is shown than the confirmed one, InvalidError when the login or sudo is
    refused, UnavailableError when it does not answer.
    """
    ssh = _library()
    with _Loop() as loop:
        machine = SshMachine(ssh, loop, address, login)
        try:
            machine.become_root()
            yield machine
        finally:
            machine.close()


class _Loop:
    """An event loop on a thread of its own, for as long as the context lasts."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vmhaul-ssh", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def __exit__(self, *_: object) -> None:
        self.run(self._end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @staticmethod
    async def _end_tasks() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for one in others:
            one.cancel()
        await asyncio.gather(*others, return_exceptions=True)


class SshMachine:
    """Runs commands one after the other over one connection; the next one after it was lost opens another."""

    def __init__(self, ssh: Any, loop: _Loop, address: SshAddress, login: Login) -> None:
        self.name = address.host
        self._ssh = ssh
        self._loop = loop
        self._address = address
        self._login = login
        self._connection: Any = None
        self._prefix: tuple[str, ...] = ()
        self._first_line = b""

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._loop.run(self._connection.wait_closed())

    def run(self, words: Sequence[str], *, stdin: bytes = b"", timeout_s: float = COMMAND_S) -> Ran:
        return self._plain(
            [*self._prefix, *_AS_RUN, *words], stdin=self._first_line + stdin, timeout_s=timeout_s
        )

    def become_root(self) -> None:
        """Before anything else is run. Tried with just what `run` puts before every command: sudo may allow one program and not another."""
        login = self._login
        if _is_root(self._plain([*_AS_RUN, *_WHO])):
            return
        silent = self._plain([*_SUDO_SILENT, *_AS_RUN, *_WHO])
        if _is_root(silent):
            self._prefix = _SUDO_SILENT
            return
        password = login.sudo_password or login.password
        if password is None:
            raise InvalidError(
                f"{self.name}: {login.user} is not root, and sudo does not run env for it without a password "
                f"({silent.why()}); give its password with --sudo-password-stdin, let sudo run all commands for it, or "
                "log in as root",
                details={"sudo_password": "sudo asks for one"},
            )
        line = password.reveal().encode() + b"\n"
        tried = self._plain([*_SUDO_ASKING, *_AS_RUN, *_WHO], stdin=line)
        if not _is_root(tried):
            raise InvalidError(
                f"{self.name}: {login.user} does not become root with sudo: {tried.why()}; check the password, and that "
                "the sudoers file lets it run all commands (vmhaul runs `sudo env ...`)",
                details={"sudo_password": "sudo refused"},
            )
        self._prefix = _SUDO_ASKING
        self._first_line = line

    def _plain(self, words: Sequence[str], *, stdin: bytes = b"", timeout_s: float = COMMAND_S) -> Ran:
        if self._connection is None or self._connection.is_closed():
            self._connection = self._loop.run(_connect(self._ssh, self._address, self._login))
        try:
            return self._loop.run(asyncio.wait_for(self._ran(shlex.join(words), stdin), timeout_s))
        except TimeoutError as error:
            raise UnavailableError(
                f"{self.name}: a command did not end within {timeout_s:.0f} s"
            ) from error
        except (self._ssh.Error, OSError) as error:
            raise UnavailableError(
                f"{self.name}: the SSH connection was lost ({reason_of(error)}); try again"
            ) from error

    async def _ran(self, command: str, stdin: bytes) -> Ran:
        # An empty input would not be ended, and whoever reads it would wait for more.
        given = {} if stdin else {"stdin": self._ssh.DEVNULL}
        output, errors = Kept(), Kept()
        process = await self._connection.create_process(command, encoding=None, **given)
        try:
            await asyncio.gather(
                self._feed(process, stdin),
                self._listen(process.stdout, output),
                self._listen(process.stderr, errors),
            )
            await process.wait_closed()
        finally:
            # Not waited for: whoever is there may never answer.
            process.close()
        status = -1 if process.exit_status is None else process.exit_status
        return Ran(status=status, output=output.text(), errors=errors.text())

    async def _feed(self, process: Any, stdin: bytes) -> None:
        if not stdin:
            return
        # A command that ends without reading all of it says why by itself.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(stdin)
            await process.stdin.drain()
            process.stdin.write_eof()

    async def _listen(self, stream: Any, kept: Kept) -> None:
        while piece := await stream.read(_PIECE_BYTES):
            kept.add(piece)
            if kept.total_bytes > MOST_BYTES:
                raise StepError(
                    f"{self.name}: a command said more than {MOST_BYTES >> 20} MiB and was ended; look at what answers "
                    "there"
                )


def _is_root(ran: Ran) -> bool:
    return ran.output.strip() == "0"


async def _connect(ssh: Any, address: SshAddress, login: Login) -> Any:
    shown: list[str] = []

    class Pinned(ssh.SSHClient):  # type: ignore[misc]
        def validate_host_public_key(self, host: str, addr: str, port: int, key: Any) -> bool:
            del host, addr, port
            shown.append(str(key.get_fingerprint("sha256")))
            return shown[-1] == address.host_key

    where = f"{address.host}:{address.port}"
    try:
        return await asyncio.wait_for(
            ssh.connect(
                address.host,
                address.port,
                username=login.user,
                password=None if login.password is None else login.password.reveal(),
                client_keys=_keys(ssh, login),
                client_factory=Pinned,
                # Nobody's files: no known host, no configuration of the user that runs the server.
                known_hosts=([], [], []),
                config=None,
                agent_path=login.agent_path,
                keepalive_interval=15,
            ),
            CONNECT_S,
        )
    except ssh.HostKeyNotVerifiable as error:
        raise ConflictError(
            f"{where} shows the host key {shown[-1] if shown else 'of another kind'} and not {address.host_key}, "
            "which was confirmed; nothing was sent. If the key was replaced on purpose, confirm the new one"
        ) from error
    except ssh.PermissionDenied as error:
        raise InvalidError(
            f"{where} refused the login of {login.user}; check the user, and the key or password",
            details={"username": "the login was refused"},
        ) from error
    except (ssh.Error, OSError, TimeoutError) as error:
        raise UnavailableError(
            f"{where} did not answer over SSH ({reason_of(error)}); check address and network"
        ) from error


def _keys(ssh: Any, login: Login) -> list[Any] | None:
    """None leaves the choice to an agent; without one an empty list keeps the user's own files out."""
    if login.private_key is None:
        return None if login.agent_path else []
    try:
        phrase = None if login.passphrase is None else login.passphrase.reveal()
        return [ssh.import_private_key(login.private_key.reveal(), phrase)]
    except (ssh.KeyImportError, ssh.KeyEncryptionError):
        # Their text may repeat lines of what was given.
        raise InvalidError(
            "the private key cannot be read: give one in OpenSSH or PEM form, and its passphrase where it has one",
            details={"private_key": "cannot be read"},
        ) from None


def _library() -> Any:
    try:
        import asyncssh
    except ImportError as error:
        raise ConflictError(
            "installing proxies over SSH needs the library asyncssh; install vmhaul[deploy] on the server"
        ) from error
    return asyncssh
