from __future__ import annotations

from typing import Any

import pytest

from backup_server.services.selection import check_selection, select
from tests.fakes.vsphere import FakeDisk, FakeVcenter, FakeVm, FakeVsphere
from transports.vsphere.model import Inventory


@pytest.fixture
def site() -> FakeVcenter:
    return FakeVcenter()


def chosen(site: FakeVcenter, *include: dict[str, str], **rest: Any) -> list[str]:
    return [one.vm.name for one in apply(site, *include, **rest).vms]


def apply(site: FakeVcenter, *include: dict[str, str], **rest: Any) -> Any:
    selection = check_selection({"include": list(include), **rest})
    return select(selection, inventory(site))


def inventory(site: FakeVcenter) -> Inventory:
    return FakeVsphere(site).inventory()


ALL = {"type": "all"}


def vm(site: FakeVcenter, name: str, **values: Any) -> FakeVm:
    return site.add_vm(name, disks=1, **values)


def test_selectors(site: FakeVcenter) -> None:
    vm(site, "web01", path=("DC0", "vm", "Prod", "Web"), tags=("Backup/gold",))
    vm(site, "web02", path=("DC0", "vm", "Test"), resource_pool="DC0/Cluster0/Resources/Gold")
    vm(site, "DB01", path=("DC0", "vm", "Prod"), tags=("gold",))

    def names(kind: str, name: str) -> list[str]:
        return chosen(site, {"type": kind, "name": name})

    assert chosen(site, ALL) == ["DB01", "web01", "web02"]
    assert names("vm", "WEB*") == ["web01", "web02"]
    assert names("vm", "web0?") == ["web01", "web02"]
    assert names("vm", "db01") == ["DB01"]
    assert names("vm", "web") == []
    assert names("datacenter", "dc0") == ["DB01", "web01", "web02"]
    assert names("cluster", "Cluster0") == ["DB01", "web01", "web02"]
    assert names("folder", "DC0/Prod") == ["DB01", "web01"]
    assert names("folder", "DC0/vm/Prod/Web") == ["web01"]
    assert names("folder", "Prod") == ["DB01", "web01"]
    assert names("folder", "Web") == ["web01"]
    assert names("folder", "Pro") == []
    assert names("folder", "DC0") == ["DB01", "web01", "web02"]
    assert names("resource-pool", "DC0/Cluster0/Resources/Gold") == ["web02"]
    assert names("resource-pool", "Gold") == ["web02"]
    assert names("tag", "gold") == ["DB01", "web01"]
    assert names("tag", "Backup/gold") == ["web01"]
    assert names("tag", "silver") == []


def test_pattern_signs_in_names_are_not_regular_expressions(site: FakeVcenter) -> None:
    vm(site, "a.b")
    vm(site, "axb")
    vm(site, "a[1]")
    assert chosen(site, {"type": "vm", "name": "a.b"}) == ["a.b"]
    assert chosen(site, {"type": "vm", "name": "a[1]"}) == ["a[1]"]


def test_a_vm_is_taken_once(site: FakeVcenter) -> None:
    vm(site, "db01")
    assert chosen(site, ALL, {"type": "vm", "name": "db*"}, {"type": "vm", "name": "db01"}) == ["db01"]


def test_exclusions_win(site: FakeVcenter) -> None:
    vm(site, "db01")
    vm(site, "db02")
    result = apply(site, ALL, exclude=[{"type": "vm", "name": "db02"}])
    assert [one.vm.name for one in result.vms] == ["db01"]
    [skipped] = result.skipped
    assert (skipped.name, skipped.expected) == ("db02", True)
    assert "excluded by the job (vm db02)" in skipped.reason


def test_what_cannot_be_backed_up_has_a_reason(site: FakeVcenter) -> None:
    vm(site, "tmpl", template=True)
    vm(site, "vCLS-1234")
    vm(site, "appliance", managed_by="com.vmware.vcDr")
    vm(site, "nameless", instance_uuid="")
    site.add_vm("diskless", disks=0)
    raw = site.add_vm("raw", disks=0)
    raw.disks.append(
        FakeDisk(key=2000, label="Hard disk 1", path="[ds1] r/r.vmdk", obstacle="physical RDM")
    )
    result = apply(site, ALL)
    reasons = {skipped.name: skipped.reason for skipped in result.skipped}
    assert result.vms == ()
    assert "template" in reasons["tmpl"]
    assert "Cluster Services" in reasons["vCLS-1234"]
    assert "com.vmware.vcDr" in reasons["appliance"]
    assert "uuid" in reasons["nameless"]
    assert reasons["diskless"] == "the VM has no disk"
    assert reasons["raw"] == "no disk to back up (Hard disk 1: physical RDM)"


def test_skipping_what_was_named_is_not_expected(site: FakeVcenter) -> None:
    vm(site, "tmpl", template=True)
    [by_all] = apply(site, ALL).skipped
    [by_name] = apply(site, {"type": "vm", "name": "tmpl"}).skipped
    assert (by_all.expected, by_name.expected) == (True, False)


@pytest.mark.parametrize(
    "wanted", ["2001", "Hard disk 2", "hard disk 2", "SCSI (0:1)", "scsi0:1", "SCSI 0:1"]
)
def test_disk_exclusions(site: FakeVcenter, wanted: str) -> None:
    site.add_vm("db01", disks=3)
    site.add_vm("web01", disks=3)
    result = apply(site, ALL, exclude_disks=[{"vm": "db*", "disk": wanted}])
    keys = {one.vm.name: [disk.key for disk in one.disks] for one in result.vms}
    assert keys == {"db01": [2000, 2002], "web01": [2000, 2001, 2002]}
    [skipped] = result.vms[0].skipped_disks
    assert "excluded by the job" in skipped.reason


def test_all_disks_excluded(site: FakeVcenter) -> None:
    site.add_vm("db01", disks=2)
    result = apply(site, ALL, exclude_disks=[{"vm": "*", "disk": "*"}])
    assert result.vms == ()
    assert "no disk to back up" in result.skipped[0].reason


def test_selectors_that_match_nothing(site: FakeVcenter) -> None:
    vm(site, "db01")
    result = apply(
        site,
        {"type": "vm", "name": "gone"},
        {"type": "vm", "name": "gone*"},
        {"type": "folder", "name": "Nowhere"},
        ALL,
    )
    assert result.missing == ("gone",)
    assert [warning.split(" matches")[0] for warning in result.warnings] == [
        "vm 'gone*'",
        "folder 'Nowhere'",
    ]


def test_tags_that_are_not_told(site: FakeVcenter) -> None:
    from dataclasses import replace

    vm(site, "db01")
    told = replace(inventory(site), tags_known=False)
    result = select(check_selection({"include": [{"type": "tag", "name": "gold"}]}), told)
    assert "does not tell its tags" in result.warnings[0]
