from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from backup_server.services import disk_plan
from backup_server.services.disk_plan import (
    DiskPlan,
    PreviousDisk,
    PreviousPoint,
    full_reason,
    plan_disks,
)
from tests.fakes.vsphere import GIB, FakeDisk
from transports.vsphere.model import DiskInfo

NOW = datetime(2026, 3, 2, 20, 0, tzinfo=UTC)


def disk(key: int = 2000, uuid: str = "u0", change_id: str = "aa/9", capacity: int = GIB) -> DiskInfo:
    fake = FakeDisk(key=key, label=f"d{key}", path="[ds1] a/b.vmdk", uuid=uuid, capacity_bytes=capacity)
    return fake.info(change_id=change_id)


def base(
    key: int = 2000, uuid: str = "u0", change_id: str = "aa/5", capacity: int = GIB
) -> PreviousDisk:
    return PreviousDisk(
        disk_key=key,
        disk_uuid=uuid,
        capacity_bytes=capacity,
        map_root=f"map{key}",
        change_id=change_id,
        base_path="[ds1] a/b.vmdk",
        frozen_path="[ds1] a/b.vmdk",
    )


def point(*disks: PreviousDisk) -> PreviousPoint:
    return PreviousPoint(id="p", created_at=NOW - timedelta(days=1), disks=disks)


def plan(now: DiskInfo, *before: PreviousDisk, tracking: bool = True) -> DiskPlan:
    plans = plan_disks([now], point(*before), full="", change_tracking=tracking)
    return plans[now.key]


def test_increment() -> None:
    found = plan(disk(), base())
    assert found == DiskPlan(
        previous_map_root="map2000", previous_change_id="aa/5", current_change_id="aa/9", reason=""
    )


@pytest.mark.parametrize(
    ("now", "before", "tracking", "reason"),
    [
        (disk(), base(), False, disk_plan.TRACKING_OFF),
        (disk(change_id=""), base(), True, disk_plan.NOT_TRACKED),
        (disk(), base(change_id=""), True, disk_plan.NO_STORED_ID),
        (disk(change_id="bb/9"), base(), True, disk_plan.TRACKING_RESET),
        (disk(change_id="aa/4"), base(), True, disk_plan.WENT_BACK),
        # Each snapshot counts on: the same number again is that of a VM that was reverted.
        (disk(change_id="aa/5"), base(), True, disk_plan.WENT_BACK),
        (
            disk(capacity=2 * GIB),
            base(),
            True,
            "the disk's capacity changed from 1073741824 to 2147483648 bytes",
        ),
    ],
)
def test_full_scan_keeps_the_map_and_drops_the_change_id(
    now: DiskInfo, before: PreviousDisk, tracking: bool, reason: str
) -> None:
    found = plan(now, before, tracking=tracking)
    assert (found.previous_map_root, found.previous_change_id, found.reason) == ("map2000", "", reason)


def test_disk_on_a_delta_is_trusted_while_the_delta_is_the_same() -> None:
    delta = replace(disk(), path="[ds1] a/b-000001.vmdk")
    assert plan(delta, replace(base(), frozen_path="[ds1] a/b-000001.vmdk")).reason == ""
    for before in ("[ds1] a/b-000002.vmdk", "[ds1] a/b.vmdk"):
        found = plan(delta, replace(base(), frozen_path=before))
        assert (found.previous_map_root, found.reason) == ("map2000", disk_plan.SNAPSHOTS_CHANGED)
    # Without snapshots there is nothing to revert to, and Storage vMotion changes names as well.
    moved = replace(base(), base_path="[ds2] moved/b.vmdk", frozen_path="[ds2] moved/b.vmdk")
    assert plan(disk(), moved).reason == ""


def test_disk_that_lay_on_a_delta_is_not_trusted_when_the_delta_is_gone() -> None:
    # Backed up on a snapshot's delta, reverted to that snapshot, snapshot deleted: nothing is left to
    # see of it now.
    before = replace(base(), frozen_path="[ds1] a/b-000001.vmdk")
    assert plan(disk(), before).reason == disk_plan.SNAPSHOTS_CHANGED


def test_point_without_the_file_that_was_read_is_not_trusted() -> None:
    assert plan(disk(), replace(base(), frozen_path="")).reason == disk_plan.SNAPSHOTS_UNKNOWN


def test_change_ids_with_blanks_and_odd_forms() -> None:
    assert plan(disk(change_id="52 9A 11/9"), base(change_id="529a11/7")).reason == ""
    # Not of the known form: the same text before the slash is all that can be compared.
    assert plan(disk(change_id="odd"), base(change_id="odd")).reason == ""


@pytest.mark.parametrize(
    ("now", "before", "reason"),
    [
        (disk(key=2001, uuid="u1"), base(), disk_plan.DISK_NEW),
        (disk(uuid="u1"), base(), disk_plan.DISK_REPLACED),
    ],
)
def test_full_for_the_disk(now: DiskInfo, before: PreviousDisk, reason: str) -> None:
    found = plan(now, before)
    assert (found.previous_map_root, found.previous_change_id, found.reason) == ("", "", reason)


def test_moved_disk_is_known_by_its_uuid() -> None:
    assert plan(disk(key=2005), base()).previous_map_root == "map2000"


def test_disks_that_swapped_their_keys() -> None:
    now = [disk(key=2000, uuid="u1"), disk(key=2001, uuid="u0")]
    plans = plan_disks(now, point(base(2000, "u0"), base(2001, "u1")), full="", change_tracking=True)
    assert plans[2000].previous_map_root == "map2001"
    assert plans[2001].previous_map_root == "map2000"


def test_duplicate_uuids_fall_back_to_the_key() -> None:
    now = [disk(key=2000, uuid="same"), disk(key=2001, uuid="same")]
    plans = plan_disks(
        now, point(base(2000, "same"), base(2001, "same")), full="", change_tracking=True
    )
    assert [plans[key].previous_map_root for key in (2000, 2001)] == ["map2000", "map2001"]
    # A copy that appeared beside the original must not take the original's map by its uuid.
    plans = plan_disks(now, point(base(2000, "same")), full="", change_tracking=True)
    assert plans[2000].previous_map_root == "map2000"
    assert plans[2001].reason == disk_plan.DISK_NEW


def test_disks_without_uuid_are_known_by_key() -> None:
    assert plan(disk(uuid=""), base(uuid="")).previous_map_root == "map2000"
    assert plan(disk(uuid=""), base(uuid="u0")).previous_map_root == "map2000"
    assert plan(disk(uuid="u0"), base(uuid="")).previous_map_root == "map2000"


def test_no_previous_point_and_forced_full() -> None:
    [first] = plan_disks([disk()], None, full="", change_tracking=True).values()
    assert (first.previous_map_root, first.reason) == ("", disk_plan.NO_PREVIOUS)
    [forced] = plan_disks([disk()], point(base()), full="because", change_tracking=True).values()
    assert (forced.previous_map_root, forced.reason) == ("", "because")
    assert forced.current_change_id == "aa/9"


def reason(previous: PreviousPoint | None, **values: object) -> str:
    given = {"forced": False, "full_every_days": None, "last_full_at": NOW, "now": NOW, **values}
    return full_reason(previous, **given)  # type: ignore[arg-type]


def test_full_reason() -> None:
    assert reason(None, forced=True) == disk_plan.NO_PREVIOUS
    assert reason(point(), forced=True) == disk_plan.FULL_ASKED
    assert reason(point()) == ""
    days = {"full_every_days": 7}
    assert reason(point(), **days, last_full_at=NOW - timedelta(days=6)) == ""
    # A daily job that starts some minutes earlier than a week ago is still a week later.
    assert "every 7 days" in reason(point(), **days, last_full_at=NOW - timedelta(days=7, minutes=-30))
    assert "no full restore point" in reason(point(), **days, last_full_at=None)


def test_previous_from_the_catalogue() -> None:
    row = {
        "disk_key": 2000, "disk_uuid": "u0", "capacity_bytes": GIB, "map_root": "map2000",
        "change_id": "aa/5", "label": "x", "read_bytes": 1,
        "path": "[ds1] a/b.vmdk", "frozen_path": "[ds1] a/b.vmdk",
    }  # fmt: skip
    found = disk_plan.previous_from_row("p", NOW - timedelta(days=1), [row])
    assert found == point(base())
    assert replace(found, id="q") != found
