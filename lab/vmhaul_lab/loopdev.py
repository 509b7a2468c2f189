"""Loop devices that go away with the process that made them.

`losetup` leaves a device behind when whoever ran it is killed. Here the device clears itself when its last
user closes it, and the maker keeps it open: after `kill -9` the kernel gives it back by itself.
"""

import errno
import fcntl
import os
import struct
import time
from pathlib import Path

from vmhaul_lab.errors import LabError

_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_BLKROSET = 0x125D
_READ_ONLY, _AUTOCLEAR = 1, 4
# struct loop_config of linux/loop.h: fd, block size, struct loop_info64 (here: five 64-bit numbers, four of 32
# bits, two names of 64 bytes, a key of 32, two numbers), eight numbers for later.
_CONFIG = struct.Struct("=II QQQQQ IIII 64s64s32s QQ 8Q")
_OFFSET, _SIZE_LIMIT, _FLAGS, _NAME = 5, 6, 10, 11
_ATTEMPTS = 200


class LoopDevice:
    """A block device over a file, until `close`; who still has it open then keeps it until it closes it."""

    def __init__(
        self, backing: Path, *, offset_bytes: int = 0, size_bytes: int = 0, read_only: bool = False
    ) -> None:
        """`size_bytes`: how much of the file it shows from the offset on; 0: all of it. Needs root."""
        self._fd = -1
        file = os.open(backing, os.O_RDONLY if read_only else os.O_RDWR)
        try:
            self.inode = _inode(os.fstat(file))
            self._fd, self.number = _configured(
                file, backing, (offset_bytes, size_bytes), read_only=read_only
            )
        finally:
            os.close(file)
        self.rdev = os.fstat(self._fd).st_rdev
        self.size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
        self.read_only = read_only
        try:
            self.sequence = Path(f"/sys/block/loop{self.number}/diskseq").read_text().strip()
        except FileNotFoundError:  # kernels before 5.15
            self.sequence = ""

    def close(self) -> None:
        """Give it back. May be called twice."""
        if self._fd >= 0:
            _let_be_written(self.path)
            os.close(self._fd)
            self._fd = -1

    @property
    def path(self) -> Path:
        """The machine's own node for it."""
        return Path(f"/dev/loop{self.number}")

    def shows(self, backing: Path) -> bool:
        """Whether this very file is behind it, under whatever name."""
        try:
            return _inode(backing.stat()) == self.inode
        except FileNotFoundError:
            return False


def _inode(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _configured(file: int, backing: Path, part: tuple[int, int], *, read_only: bool) -> tuple[int, int]:
    values: list[int | bytes] = [0] * 11 + [b""] * 3 + [0] * 10
    values[0] = file
    values[_OFFSET], values[_SIZE_LIMIT] = part
    values[_FLAGS] = _AUTOCLEAR | (_READ_ONLY if read_only else 0)
    values[_NAME] = os.fsencode(backing)[-63:]
    config = _CONFIG.pack(*values)
    for _ in range(_ATTEMPTS):
        number = _free_number()
        try:
            _let_be_written(Path(f"/dev/loop{number}"))
            device = os.open(f"/dev/loop{number}", os.O_RDONLY if read_only else os.O_RDWR)
        except FileNotFoundError:  # its node is about to be made
            time.sleep(0.01)
            continue
        try:
            fcntl.ioctl(device, _LOOP_CONFIGURE, config)
        except OSError as error:
            os.close(device)
            if error.errno != errno.EBUSY:  # somebody was faster
                raise LabError(f"no loop device for {backing}: {error}") from error
            continue
        return device, number
    raise LabError(f"no loop device for {backing}: others took each free one {_ATTEMPTS} times")


def _let_be_written(node: Path) -> None:
    """Take back that somebody forbade writes (BLKROSET): the kernel keeps that for the next who gets this device."""
    device = os.open(node, os.O_RDONLY)
    try:
        fcntl.ioctl(device, _BLKROSET, struct.pack("i", 0))
    finally:
        os.close(device)


def _free_number() -> int:
    try:
        control = os.open("/dev/loop-control", os.O_RDWR)
    except OSError as error:
        raise LabError(
            f"loop devices cannot be made: {error}; it takes root and /dev/loop-control"
        ) from error
    try:
        return fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    finally:
        os.close(control)
