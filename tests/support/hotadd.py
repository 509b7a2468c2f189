"""A presenter whose disks appear in a SysTree: what server, vCenter and kernel do together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.sysfs import SysTree
from transports.base import DiskRef, Presented, TransportMode
from transports.errors import TransportError

UUID = "6000C29a-bcde-0123-4567-89abcdef0123"
NAME = "naa.6000c29abcde0123456789abcdef0123"


def disk_ref(capacity_bytes: int) -> DiskRef:
    return DiskRef(
        vm_moref="vm-7",
        vm_name="db01",
        disk_key=2000,
        path="[ds1] db01/db01.vmdk",
        capacity_bytes=capacity_bytes,
        datastore="ds1",
        snapshot_moref="snapshot-1",
    )


@dataclass
class TreePresenter:
    """Shows `content` as `name` when it is asked to present."""

    tree: SysTree
    content: Path
    disk: DiskRef
    wwid: str = NAME
    uuid: str = UUID
    bus: int = 0
    unit: int = 1
    address: str = "2:0:1:0"
    name: str = "sdb"
    error: TransportError | None = None
    appears: Callable[[], None] | None = None
    """Instead of adding the disk."""
    asked: list[str] = field(default_factory=list)

    def present(self, mode: TransportMode, *, write: bool) -> Presented:
        self.asked.append(f"present {mode} {'write' if write else 'read'}")
        if self.error is not None:
            raise self.error
        if self.appears is not None:
            self.appears()
        elif not (self.tree.sys / "block" / self.name).exists():
            self.show()
        return Presented(
            disk=self.disk, mode=mode, disk_uuid=self.uuid, controller_bus=self.bus, unit=self.unit
        )

    def show(self) -> None:
        self.tree.add_disk(self.name, self.content, wwid=self.wwid, address=self.address)

    def withdraw(self, mode: TransportMode) -> None:
        deleted = self.tree.sys / "devices" / self.address / "delete"
        state = deleted.read_text().strip() if deleted.exists() else "-"
        self.asked.append(f"withdraw {mode} delete={state}")
