"""A LUN behind a real iSCSI target: tgtd serves an image, and what a client in user space gets of it appears as a
file. (The kernel here has no initiator, so libiscsi in QEMU's storage daemon is the client.)
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import free_port

_TARGET = "iqn.2026-01.test.vmhaul:lun"
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class IscsiLun:
    path: Path
    """The file through which the image is read and written."""
    client: subprocess.Popen[bytes]

    def cut(self) -> None:
        """The way to the LUN is lost for good."""
        self.client.kill()
        self.client.wait()


@contextmanager
def lun_over_iscsi(image: Path, directory: Path) -> Iterator[IscsiLun]:
    """Needs root and FUSE."""
    port, control = free_port(), str(1000 + os.getpid() % 30000)
    with _process(
        directory, "tgtd", "-f", "-C", control, "--iscsi", f"portal=127.0.0.1:{port}"
    ) as target:
        admin = ("tgtadm", "-C", control, "--lld", "iscsi")
        new = (*admin, "--op", "new", "--tid", "1")
        _until(target, directory, lambda: _done(*admin, "--op", "show", "--mode", "target"))
        _run(*new, "--mode", "target", "-T", _TARGET)
        _run(*new, "--mode", "logicalunit", "--lun", "1", "-b", str(image))
        _run(*admin, "--op", "bind", "--mode", "target", "--tid", "1", "-I", "127.0.0.1")
        mountpoint = directory / "over-iscsi"
        mountpoint.touch()
        disk = (
            "driver=iscsi,node-name=lun,transport=tcp,cache.direct=on,"
            f"portal=127.0.0.1:{port},target={_TARGET},lun=1"
        )
        export = f"type=fuse,id=lun,node-name=lun,mountpoint={mountpoint},writable=on"
        with _process(
            directory, "qemu-storage-daemon", "--blockdev", disk, "--export", export
        ) as client:
            size = image.stat().st_size
            _until(client, directory, lambda: mountpoint.stat().st_size == size)
            try:
                yield IscsiLun(mountpoint, client)
            finally:
                if client.poll() is not None:
                    # Killed, it could not take its mount away.
                    subprocess.run(["umount", "-l", str(mountpoint)], check=False, capture_output=True)


@contextmanager
def _process(directory: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """tgtd does not end on SIGTERM while it has targets."""
    with (directory / f"{command[0]}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        if command[0] != "tgtd":
            process.terminate()
        else:
            process.kill()
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(process: subprocess.Popen[bytes], directory: Path, ready: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            logs = [path.read_text(errors="replace") for path in directory.glob("*.log")]
            raise RuntimeError(f"{process.args!r} is not ready: {logs}")
        time.sleep(0.05)


def _done(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
