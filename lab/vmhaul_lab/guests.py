"""Guests that go on working while they are backed up."""

import threading
from types import TracebackType
from typing import Self

from vmhaul_lab import day
from vmhaul_lab.control import ControlClient, LabDisk
from vmhaul_lab.errors import LabError

_LOOK_EVERY_S = 0.1
# Little enough to be quick, enough to touch data, directories and journals.
_SHARE = 0.002


class BusyGuests:
    """For the length of a `with` block: each disk that gets a snapshot is written to by its guest, once.

    What a guest writes then lies behind the snapshot: it must not be in this restore point, and must
    be in the next one.
    """

    def __init__(self, control: ControlClient, *, seed: str) -> None:
        self._control = control
        self._seed = seed
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="busy-guests")
        self._touched: set[tuple[str, int]] = set()
        self._written_bytes = 0
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise LabError(f"the guests could not go on writing: {self._error}") from self._error

    def sentence(self) -> str:
        """What the guests did meanwhile."""
        return (
            f"meanwhile the guests wrote {self._written_bytes / 2**20:.1f} MiB to {len(self._touched)} disks "
            "behind their snapshots"
        )

    def _watch(self) -> None:
        try:
            while not self._ended.wait(_LOOK_EVERY_S):
                for disk in self._control.disks():
                    if disk.snapshots and (disk.vm, disk.key) not in self._touched:
                        self._write(disk)
        except (LabError, OSError) as error:
            self._error = error

    def _write(self, disk: LabDisk) -> None:
        seed = f"{self._seed}/{disk.vm}/{disk.label}"
        try:
            report = day.work_on_disk(disk.live_file, seed, share=_SHARE)
        except (LabError, OSError):
            # The snapshot was removed in between, so the live file has its first name again.
            if disk.live_file.exists():
                raise
            return
        self._touched.add((disk.vm, disk.key))
        self._written_bytes += report.written_bytes
