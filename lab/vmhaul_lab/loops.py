"""Loop devices and mounts that are always given back.

Both exist in the kernel, not in a process: what is left behind stays until the next boot. So every
use is a context manager, and `release_under` frees what a killed process left in a directory.
"""

import errno
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vmhaul_lab.commands import run
from vmhaul_lab.errors import CommandError, LabError
from vmhaul_lab.loopdev import LoopDevice
from vmhaul_lab.volumes import Volume

# The lab's disks are never powered off in the middle of a write, and the kernel's own flushing to the
# backing file would only slow the lab down; the uuid option lets a disk and its copy be mounted together.
_OPTIONS = {"ext4": "noatime,nobarrier,noinit_itable", "xfs": "noatime,nouuid"}
_READ_ONLY_OPTIONS = {"ext4": "ro,noload", "xfs": "ro,norecovery,nouuid"}


@contextmanager
def loop_device(image: Path, volume: Volume, *, read_only: bool) -> Iterator[Path]:
    """A loop device over one volume of an image for the length of a `with` block."""
    device = LoopDevice(
        image,
        offset_bytes=volume.offset_bytes,
        size_bytes=volume.length_bytes,
        read_only=read_only,
    )
    try:
        yield device.path
    finally:
        device.close()
        await_release(image)


@contextmanager
def mounted(image: Path, volume: Volume, *, read_only: bool) -> Iterator[Path]:
    """The file system of a volume, mounted on a directory of its own for the length of a `with` block.

    Read-only mounts replay no journal, so they never change the image. `LabError` when the volume
    holds nothing that this kernel mounts.
    """
    if not volume.mountable:
        raise LabError(
            f"volume {volume.name} of {image} holds {volume.kind}: the lab mounts ext4 and xfs"
        )
    options = (_READ_ONLY_OPTIONS if read_only else _OPTIONS)[volume.kind]
    with loop_device(image, volume, read_only=read_only) as device, _mount_point() as point:
        run("mount", "-t", volume.kind, "-o", options, device, point)
        try:
            yield point
        finally:
            run("umount", point)


@contextmanager
def _mount_point() -> Iterator[Path]:
    # Not a TemporaryDirectory: that would delete the guest's files should it still be mounted.
    point = Path(tempfile.mkdtemp(prefix="vmhaul-lab-"))
    try:
        yield point
    finally:
        if not _settle(lambda: _removed(point)):
            raise LabError(f"{point} is still in use although nothing is mounted there any more")


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _settle(done: Callable[[], bool]) -> bool:
    """Whether it came true within half a minute."""
    for _ in range(600):
        if done():
            return True
        time.sleep(0.05)
    return False


def await_release(image: Path) -> bool:
    """Whether no loop device shows that file within half a minute after the last was closed.

    While another process looks at a device (who searches block devices opens each) the kernel defers
    taking it back, and does it by itself.
    """
    return _settle(lambda: not _loops_of(image))


def _loops_of(image: Path) -> list[Path]:
    return [
        device for device in loops_under(image.parent) if _backing_file(device) == str(image.resolve())
    ]


def _backing_file(device: Path) -> str:
    try:
        return Path("/sys/block", device.name, "loop/backing_file").read_text().rstrip("\n")
    except OSError:
        return ""  # detached just now


def loops_under(directory: Path) -> list[Path]:
    """Loop devices whose backing file lies under `directory`."""
    listed = run("losetup", "--json", "--list", "--output", "NAME,BACK-FILE").stdout
    devices = json.loads(listed)["loopdevices"] if listed.strip() else []
    root = str(directory.resolve()) + os.sep
    return [Path(item["name"]) for item in devices if str(item["back-file"] or "").startswith(root)]


def release_under(directory: Path) -> list[Path]:
    """Unmount and detach all loop devices whose backing file lies under `directory`; name them."""
    devices = loops_under(directory)
    for device in devices:
        for line in Path("/proc/self/mounts").read_text().splitlines():
            source, target = line.split()[:2]
            if source == str(device):
                run("umount", target)
        try:
            run("losetup", "--detach", device)
        except CommandError:
            if device in loops_under(directory):
                raise
    _settle(lambda: not loops_under(directory))  # deferred as above
    return devices
