"""A real NFS server (nfs-ganesha, in user space) over the folders of a site's datastores.

It lives in a network namespace of its own at the far end of a veth pair: no port of this machine is taken, and the
port mapper that NFS 3 needs is the server's own. Both go away with the process that started them, `kill -9` included:
they are tied to its life, and the namespace with its devices to theirs.
"""

import json
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from vmhaul_lab.commands import run
from vmhaul_lab.errors import LabError

PORT = 2049
_READY_S = 60
_READY_WORDS = "NFS SERVER INITIALIZED"
# What the directory holds changes under the server's feet when vCenter's own side renames files.
_CONFIG = """
NFS_CORE_PARAM {{ Protocols = {protocols}; NFS_Port = {port}; MNT_Port = 20048; Bind_addr = {address}; Mount_Path_Pseudo = true;
  Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = {udp}; allow_set_io_flusher_fail = true; }}
NFSv4 {{ Graceless = true; Lease_Lifetime = 30; RecoveryBackend = fs; RecoveryRoot = {recovery}; Minor_Versions = 0,1,2; }}
NFS_KRB5 {{ Active_krb5 = false; }}
MDCACHE {{ Dir_Chunk = 0; }}
EXPORT_DEFAULTS {{ Attr_Expiration_Time = 0; }}
LOG {{ Default_Log_Level = EVENT; }}
"""
# The far end of the veth pair comes when the namespace is there.
_IN_NAMESPACE = """
set -e
until ip addr show dev far 2>/dev/null | grep -q 'inet '; do sleep 0.01; done
mount -t tmpfs tmpfs /run
mkdir -p /run/ganesha /run/rpcbind
if [ "$1" = 3 ]; then
  rpcbind -f -w &
  # The server registers once, and stands still when nobody answers.
  until rpcinfo -p 127.0.0.1 >/dev/null 2>&1; do sleep 0.02; done
fi
shift
exec ganesha.nfsd -F "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NfsExport:
    """A datastore's folder as it is exported."""

    name: str
    directory: str
    version: int
    """3 or 4."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Words of ganesha's EXPORT block: Access_Type, Squash."""
    path: str = ""
    """Under which clients know it; /vol and its name when empty."""

    @property
    def remote_path(self) -> str:
        """Under which clients know it."""
        return self.path or f"/vol/{self.name}"


class NfsServer:
    """One server for all exports; `start`, `stop` and so on, then `stop` for good. Needs root."""

    def __init__(self, directory: Path, exports: Sequence[NfsExport]) -> None:
        self._directory = directory
        self._exports = exports
        self._lowest = min(export.version for export in exports)
        # Not from the seed of the site: two sites with one seed must not meet.
        self._random = random.SystemRandom()
        self._process: subprocess.Popen[bytes] | None = None
        # The kernel ties a child to the thread that made it, not to the process.
        self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nfs-parent")
        self._near = ""
        self.host = ""

    @property
    def holder_pid(self) -> int:
        """Of the process that holds its namespace; the near end of its cable is named after it."""
        if self._process is None:
            raise LabError("the NFS server is not started")
        return self._process.pid

    @property
    def pid(self) -> int:
        """Of the server itself, not of the process that holds its namespace."""
        for pid in _descendants(self.holder_pid):
            if Path(f"/proc/{pid}/comm").read_text().startswith("ganesha"):
                return pid
        raise LabError(f"the NFS server in the namespace of {self.holder_pid} has ended")

    def start(self) -> None:
        """Start it, at the same address as before; `LabError` with the end of its log when it does not answer."""
        if self._process is not None:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        if not self.host:
            self._choose_address()
        config = self._directory / "ganesha.conf"
        config.write_text(self._config())
        log = self._directory / "ganesha.log"
        log.unlink(missing_ok=True)
        words = ["-f", config, "-L", log, "-p", self._directory / "ganesha.pid"]
        self._process = self._starter.submit(
            subprocess.Popen,
            [*_TIED, *_UNSHARED, str(self._lowest), *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ).result()
        try:
            self._join_namespace(self._process.pid)
            self._wait_until_it_answers(self._process, log)
        except LabError as error:
            self.stop()
            raise LabError(f"{error}: {_end_of(log)}") from error

    def stop(self) -> None:
        """Kill it. May be called twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _choose_address(self) -> None:
        """A network of four addresses from those that are set aside for trials (RFC 2544)."""
        net = f"198.{self._random.choice((18, 19))}.{self._random.randrange(256)}"
        at = self._random.randrange(64) * 4
        self._near, self.host = f"{net}.{at + 1}", f"{net}.{at + 2}"

    def _config(self) -> str:
        recovery = self._directory / "recovery"
        recovery.mkdir(exist_ok=True)
        parts = [
            _CONFIG.format(
                protocols="3,4" if self._lowest == 3 else "4",
                udp="false" if self._lowest == 3 else "none",
                port=PORT,
                address=self.host,
                recovery=recovery,
            )
        ]
        for number, export in enumerate(self._exports, start=1):
            values = {
                "Export_Id": str(number),
                "Path": json.dumps(export.directory),
                "Pseudo": json.dumps(export.remote_path),
                "Access_Type": "RW",
                "Squash": "No_Root_Squash",
                "SecType": "sys",
                "Protocols": str(export.version),
                "Transports": "TCP",
                "MaxRead": "1048576",
                "MaxWrite": "1048576",
                **export.options,
            }
            inner = " ".join(f"{key} = {value};" for key, value in values.items())
            parts.append(f"EXPORT {{ {inner} FSAL {{ Name = VFS; }} }}\n")
        return "".join(parts)

    def _join_namespace(self, pid: int) -> None:
        name = f"vl{pid}"
        # `unshare` makes the namespace itself and stays in it.
        _wait(lambda: _namespace_of(pid) not in {"", _namespace_of("self")}, "the network namespace")
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "far", "netns", str(pid))
        run("ip", "addr", "add", f"{self._near}/30", "dev", name)
        run("ip", "link", "set", name, "up")
        inside = ("nsenter", "--target", str(pid), "--net")
        run(*inside, "ip", "link", "set", "lo", "up")
        run(*inside, "ip", "link", "set", "far", "up")
        run(*inside, "ip", "addr", "add", f"{self.host}/30", "dev", "far")
        # For clients in namespaces of their own, whom this one passes on.
        run(*inside, "ip", "route", "add", "default", "via", self._near)

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes], log: Path) -> None:
        def answers() -> bool:
            if process.poll() is not None:
                raise LabError(f"nfs-ganesha has ended with status {process.returncode}")
            # It takes calls, and hangs up on some of them, before it says that it is ready.
            return _READY_WORDS in _end_of(log) and _answers(self.host, self._lowest)

        _wait(answers, f"nfs-ganesha at {self.host}")


def _descendants(pid: int) -> Iterator[int]:
    """The process, its children, theirs and so on."""
    yield pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from _descendants(int(child))


_TIED = ("setpriv", "--pdeathsig", "KILL")
_UNSHARED = (
    *("unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"),
    *("sh", "-c", _IN_NAMESPACE, "nfs"),
)


def _namespace_of(pid: int | str) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except FileNotFoundError:
        return ""


def _answers(host: str, version: int) -> bool:
    """Whether it answers a call of the procedure that does nothing: it listens some time before it serves."""
    # RFC 5531: one fragment; transaction 1, a call, RPC 2, program 100003, procedure 0, no credentials.
    call = struct.pack(">10I", 1, 0, 2, 100003, version, 0, 0, 0, 0, 0)
    try:
        with socket.create_connection((host, PORT), timeout=1) as connection:
            connection.sendall(struct.pack(">I", 0x80000000 | len(call)) + call)
            return len(connection.recv(28, socket.MSG_WAITALL)) == 28
    except OSError:
        return False


def _wait(done: Callable[[], bool], what: str) -> None:
    pause = threading.Event()
    until = time.monotonic() + _READY_S
    while not done():
        if time.monotonic() > until:
            raise LabError(f"{what} did not get ready within {_READY_S} s")
        pause.wait(0.02)


def _end_of(log: Path) -> str:
    try:
        return log.read_text(errors="replace")[-1500:]
    except FileNotFoundError:
        return "it wrote no log"
