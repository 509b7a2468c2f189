"""What every restore point must hold: the disks as they were frozen by the snapshot it was read from."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vmhaul_lab.control import ControlClient, LabDisk, LabSnapshot
from vmhaul_lab.errors import LabError
from vmhaul_lab.verify import sha256

_LOOK_S = 0.1


@dataclass
class Frozen:
    """Digests of frozen disks."""

    by_change_id: dict[tuple[str, int, str], str] = field(default_factory=dict)
    """(VM, disk key, change id of the snapshot's disk) -> SHA-256."""
    of_disk: dict[tuple[str, int], set[str]] = field(default_factory=dict)
    """Everything that a snapshot ever froze of a disk."""


class SnapshotWatcher:
    """Digests every snapshot's files while they are there. A snapshot lives for as long as disks are read, so that none
    which a backup came from is missed.
    """

    def __init__(self, control: ControlClient) -> None:
        self._control = control
        self._seen: set[tuple[str, int, str]] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="snapshot-watcher", daemon=True)
        self.frozen = Frozen()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            with suppress(LabError):
                for disk in self._control.disks():
                    self._digest(disk)

    def _digest(self, disk: LabDisk) -> None:
        for snapshot in disk.snapshots:
            mark = (disk.vm, disk.key, snapshot.moref)
            if mark in self._seen or snapshot.file is None:
                continue
            with suppress(OSError), snapshot.file.open("rb") as file:
                # A removal renames the live file over it. Still listed now: what was opened is the frozen one.
                if not self._still_there(disk, snapshot):
                    continue
                digest = sha256(Path(f"/proc/self/fd/{file.fileno()}"))
                self._seen.add(mark)
                self.frozen.of_disk.setdefault((disk.vm, disk.key), set()).add(digest)
                if snapshot.change_id:
                    self.frozen.by_change_id[disk.vm, disk.key, snapshot.change_id] = digest

    def _still_there(self, disk: LabDisk, snapshot: LabSnapshot) -> bool:
        return any(
            now.key == disk.key and now.vm_moref == disk.vm_moref and snapshot in now.snapshots
            for now in self._control.disks(disk.vm)
        )
