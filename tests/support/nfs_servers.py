"""Real NFS servers (nfs-ganesha) for tests: version 4 on an address of the loopback network, version 3, which
cannot do without a port mapper, in a network of its own. Both end with this process, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

NFS_PORT = 2049
_READY_S = 60.0
_POLL = threading.Event()
_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")


@dataclass(frozen=True, kw_only=True)
class Export:
    """A directory and the path under which it is exported."""

    directory: Path
    path: str
    read_only: bool = False
    squash_root: bool = False


@dataclass(kw_only=True)
class NfsServer:
    address: str
    exports: Mapping[str, Export]
    process: subprocess.Popen[bytes]
    command: Sequence[str] = field(repr=False)
    log: Path

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """It takes connections (the kernel does) and answers nothing."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def start(self) -> None:
        """Again, after kill(); returns when it answers."""
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL)
        self._wait()

    def _wait(self) -> None:
        for _ in range(int(_READY_S / 0.05)):
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                socket.create_connection((self.address, NFS_PORT), 1).close()
                return
            _POLL.wait(0.05)
        raise AssertionError(f"nfs-ganesha did not start:\n{self.log.read_text(errors='replace')}")


@contextmanager
def nfs4_server(directory: Path, exports: Sequence[Export]) -> Iterator[NfsServer]:
    """On loopback, without port mapper."""
    address = free_loopback_address()
    command = _ganesha(directory, address, exports, protocols="4")
    with _running(address, exports, command, directory / "ganesha.log") as server:
        yield server


@contextmanager
def nfs3_server(directory: Path, exports: Sequence[Export]) -> Iterator[NfsServer]:
    """Versions 3 and 4 in a name space that a virtual cable joins to ours."""
    with lan() as network:
        ganesha = _ganesha(directory, network.address, exports, protocols="3,4")
        inside = ("nsenter", "--net", "--mount", "--target", str(network.pid), *_DIE_WITH_PARENT)
        mapper = subprocess.Popen([*inside, "rpcbind", "-f"], stdin=subprocess.DEVNULL)
        try:
            _wait_for_port(network.address, 111)
            with _running(
                network.address, exports, (*inside, *ganesha), directory / "ganesha.log"
            ) as server:
                yield server
        finally:
            mapper.kill()
            mapper.wait()


@dataclass(frozen=True, kw_only=True)
class Lan:
    """A network name space at the other end of a cable."""

    pid: int
    """Of a process that lives in it."""
    address: str
    """Of the other end."""
    own_address: str
    interface: str
    """Our end."""


@contextmanager
def lan() -> Iterator[Lan]:
    """Gone, with what runs in it, when left, and when this process dies."""
    base = f"198.18.{random.randrange(256)}.{random.randrange(64) * 4}"
    network = base.rpartition(".")[0]
    first = int(base.rpartition(".")[2])
    ours, theirs = f"{network}.{first + 1}", f"{network}.{first + 2}"
    name = f"vh{random.randrange(16**8):08x}"
    script = "mount -t tmpfs none /run && ip link set lo up && echo up && exec cat"
    holder = subprocess.Popen(
        [*_DIE_WITH_PARENT, "unshare", "--net", "--mount", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"up\n"
        _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        _ip("addr", "add", f"{ours}/30", "dev", name)
        _ip("link", "set", name, "up")
        in_namespace(holder.pid, "ip", "addr", "add", f"{theirs}/30", "dev", "eth0")
        in_namespace(holder.pid, "ip", "link", "set", "eth0", "up")
        yield Lan(pid=holder.pid, address=theirs, own_address=ours, interface=name)
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()


def in_namespace(pid: int, *command: str) -> None:
    subprocess.run(["nsenter", "--net", "--target", str(pid), *command], check=True)


def free_loopback_address() -> str:
    """One on which nobody serves NFS."""
    while True:
        address = f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, NFS_PORT))
            return address


@contextmanager
def _running(
    address: str, exports: Sequence[Export], command: Sequence[str], log: Path
) -> Iterator[NfsServer]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    by_path = {export.path: export for export in exports}
    server = NfsServer(address=address, exports=by_path, process=process, command=command, log=log)
    try:
        server._wait()
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def _ganesha(
    directory: Path, address: str, exports: Sequence[Export], *, protocols: str
) -> Sequence[str]:
    directory.mkdir(parents=True, exist_ok=True)
    lines = [
        f"NFS_CORE_PARAM {{ Protocols = {protocols}; NFS_Port = {NFS_PORT}; Bind_addr = {address};",
        "  Enable_RQUOTA = false; Enable_UDP = false; Enable_NLM = false; mount_path_pseudo = true; }",
        f'NFSv4 {{ RecoveryBackend = fs; RecoveryRoot = "{directory}/recovery"; Graceless = true; }}',
        "LOG { Default_Log_Level = WARN; }",
    ]
    for number, export in enumerate(exports, 1):
        access = "RO" if export.read_only else "RW"
        squash = "Root_Squash" if export.squash_root else "No_Root_Squash"
        lines += [
            f"EXPORT {{ Export_Id = {number}; Path = {export.directory}; Pseudo = {export.path};",
            f"  Access_Type = {access}; Squash = {squash}; SecType = sys; FSAL {{ Name = VFS; }} }}",
        ]
    config = directory / "ganesha.conf"
    config.write_text("\n".join(lines) + "\n")
    (directory / "recovery").mkdir(exist_ok=True)
    log, pid = directory / "ganesha.log", directory / "ganesha.pid"
    program = ["ganesha.nfsd", "-F", "-f", str(config), "-L", str(log), "-p", str(pid)]
    return (*_DIE_WITH_PARENT, *program)


def _wait_for_port(address: str, port: int) -> None:
    for _ in range(int(_READY_S / 0.05)):
        with contextlib.suppress(OSError):
            socket.create_connection((address, port), 1).close()
            return
        _POLL.wait(0.05)
    raise AssertionError(f"nobody serves {address}:{port}")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
