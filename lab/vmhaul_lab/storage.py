"""File systems of the lab that share blocks between files: what makes LUNs and snapshots instant.

One sparse file with XFS or btrfs in it, mounted below the site's directory. A mount outlives the process that made
it; `loops.release_under` frees what a killed one left.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vmhaul_lab.commands import run
from vmhaul_lab.errors import CommandError, LabError
from vmhaul_lab.loopdev import LoopDevice
from vmhaul_lab.loops import await_release, release_under

_ATTEMPTS = 100
_KINDS = {
    "xfs": (("mkfs.xfs", "-q", "-f", "-m", "reflink=1"), "nouuid,noatime"),
    "btrfs": (("mkfs.btrfs", "-q", "-f", "-m", "single"), "noatime"),
}


@dataclass(slots=True, kw_only=True)
class SharedBlocks:
    """A file system of that kind on `directory`. Needs root; use it in a `with` block, or call `unmount`."""

    directory: Path
    kind: str = "xfs"
    size_bytes: int = 256 << 30
    """Sparse: takes what is written."""

    @property
    def image(self) -> Path:
        """The file that it is in."""
        return self.directory.with_name(self.directory.name + ".img")

    def mount(self) -> Self:
        """Make it and mount it; `LabError` where this machine cannot."""
        if self.kind not in _KINDS:
            raise LabError(f"{self.kind} is no file system that shares blocks; take xfs or btrfs")
        make, options = _KINDS[self.kind]
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.image.open("xb") as file:
            file.truncate(self.size_bytes)
        run(*make, self.image)
        device = LoopDevice(self.image)
        try:
            run("mount", "-t", self.kind, "-o", options, f"/dev/loop{device.number}", self.directory)
        finally:
            device.close()  # the mount keeps it until it goes
        return self

    def unmount(self) -> None:
        """Give it back, with everything on it. May be called twice."""
        if not self.image.exists():
            return
        release_under(self.directory)
        if self.directory.is_mount():
            self._unmount()
        await_release(self.image)  # before its name goes, by which the device is known
        self.image.unlink()

    def _unmount(self) -> None:
        pause = threading.Event()
        for _ in range(_ATTEMPTS):
            try:
                run("umount", self.directory)
            except CommandError:
                # A process that was just ended, or its loop device, still lets go of it.
                pause.wait(0.05)
            else:
                return
        detach(self.directory)
        raise LabError(f"{self.directory} was still in use: something there was not closed")

    def __enter__(self) -> Self:
        return self.mount()

    def __exit__(self, *_: object) -> None:
        self.unmount()


def detach(directory: Path) -> None:
    """Unmount it at once; what is still open there stays usable until it is closed."""
    if directory.is_mount():
        run("umount", "--lazy", directory)
