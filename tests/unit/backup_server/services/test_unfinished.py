"""What may be gone on from, as pure choices."""

from __future__ import annotations

from dataclasses import replace

from backup_server.services.disk_plan import PreviousDisk
from backup_server.services.unfinished import NOTHING, Earlier, EarlierDisk, choose
from transports.vsphere.model import DiskInfo

GIB = 1 << 30
BASE = PreviousDisk(
    disk_key=2000,
    disk_uuid="uuid-1",
    capacity_bytes=GIB,
    map_root="",
    change_id="52 aa/3",
    base_path="[ds1] a/a.vmdk",
    frozen_path="[ds1] a/a.vmdk",
)
EARLIER = Earlier(was_full=False, disks=(EarlierDisk(task_id="t1", disk=BASE),))


def disk(**changes: object) -> DiskInfo:
    found = DiskInfo(
        key=2000,
        label="Hard disk 1",
        path="[ds1] a/a.vmdk",
        base_path="[ds1] a/a.vmdk",
        uuid="uuid-1",
        capacity_bytes=GIB,
        datastore="ds1",
        change_id="52 aa/5",
        thin=True,
        controller="SCSI (0:0)",
        disk_mode="persistent",
        backup_obstacle="",
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def chosen(now: DiskInfo, *, change_tracking: bool = True, earlier: Earlier = EARLIER) -> list[str]:
    return [one.task_id for one in choose(earlier, [now], change_tracking=change_tracking).values()]


def test_the_same_disk_goes_on() -> None:
    assert chosen(disk()) == ["t1"]


def test_nothing_else_does() -> None:
    assert chosen(disk(), earlier=NOTHING) == []
    assert chosen(disk(), change_tracking=False) == []
    for change in (
        {"uuid": "uuid-2"},
        {"capacity_bytes": 2 * GIB},
        {"change_id": ""},
        {"change_id": "53 bb/5"},  # tracking began anew
        {"change_id": "52 aa/3"},  # the VM went back
        {"path": "[ds1] a/a-000001.vmdk"},  # a snapshot that was not there
    ):
        assert chosen(disk(**change)) == [], change
    wrong = replace(BASE, tracking_wrong="a sample differed")
    found = Earlier(was_full=False, disks=(EarlierDisk(task_id="t1", disk=wrong),))
    assert chosen(disk(), earlier=found) == []
