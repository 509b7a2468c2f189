"""What every restore point must hold: the disks as they were frozen by the snapshot it was read from."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import BinaryIO

from vmhaul_lab.control import ControlClient, LabDisk, LabSnapshot
from vmhaul_lab.errors import LabError
from vmhaul_lab.verify import sha256

_LOOK_S = 0.05


@dataclass
class Frozen:
    """Digests of frozen disks."""

    by_change_id: dict[tuple[str, int, str], str] = field(default_factory=dict)
    """(VM, disk key, change id of the snapshot's disk) -> SHA-256."""
    of_disk: dict[tuple[str, int], set[str]] = field(default_factory=dict)
    """Everything that a snapshot ever froze of a disk."""


class SnapshotWatcher:
    """Digests every snapshot's files. A snapshot may live for a second only, where the storage makes one of its own: so its
    files are opened by one thread and read by another. What is open stays as it was frozen.
    """

    def __init__(self, control: ControlClient) -> None:
        self._control = control
        self._seen: set[tuple[str, int, str]] = set()
        self._over = threading.Event()
        self._opened: Queue[_Opened | None] = Queue()
        self._threads = [
            threading.Thread(target=work, name=f"snapshot-{name}", daemon=True)
            for name, work in (("watcher", self._watch), ("reader", self._read))
        ]
        self.frozen = Frozen()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        self._opened.put(None)
        for thread in self._threads:
            thread.join()

    def settle(self) -> None:
        """Return when everything that was seen up to now is in `frozen`."""
        self._opened.join()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            with suppress(LabError):
                for disk in self._control.disks():
                    self._open(disk)

    def _open(self, disk: LabDisk) -> None:
        for snapshot in disk.snapshots:
            mark = (disk.vm, disk.key, snapshot.moref)
            if mark in self._seen or snapshot.file is None:
                continue
            with suppress(OSError):
                file = snapshot.file.open("rb")
                # A removal renames the live file over it. Still listed now: what was opened is the frozen one.
                if self._still_there(disk, snapshot):
                    self._seen.add(mark)
                    self._opened.put(_Opened(disk, snapshot.change_id, file))
                else:
                    file.close()

    def _read(self) -> None:
        while (opened := self._opened.get()) is not None:
            disk = opened.disk
            with opened.file:
                digest = sha256(Path(f"/proc/self/fd/{opened.file.fileno()}"))
            self.frozen.of_disk.setdefault((disk.vm, disk.key), set()).add(digest)
            if opened.change_id:
                self.frozen.by_change_id[disk.vm, disk.key, opened.change_id] = digest
            self._opened.task_done()
        self._opened.task_done()

    def _still_there(self, disk: LabDisk, snapshot: LabSnapshot) -> bool:
        return any(
            now.key == disk.key and now.vm_moref == disk.vm_moref and snapshot in now.snapshots
            for now in self._control.disks(disk.vm)
        )


@dataclass(frozen=True, slots=True)
class _Opened:
    """A frozen file that waits to be digested."""

    disk: LabDisk
    change_id: str
    file: BinaryIO
