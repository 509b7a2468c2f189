"""Every requirement and limitation as a candidate that is refused, with its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transports.base import TransportMode
from transports.rules import (
    DISK_RULES,
    PROXY_RULES,
    RULES,
    Connected,
    DiskFacts,
    ProxyMachine,
    ProxyVm,
    StorageSnapshotFacts,
    Use,
    Verdict,
    judge,
    judge_disk,
    judge_proxy,
    reach_of,
    same_uuid,
    what_matters,
)

SNAPSHOT, SAN, NFS, HOTADD, NBDSSL, NBD = TransportMode
GIB, TIB = 1 << 30, 1 << 40
UUID_TEXT = "420a1b2c-3d4e-5f60-7182-93a4b5c6d7e8"

DISK = DiskFacts(
    vcenter_id="vc",
    vm_moref="vm-9",
    vm_name="db01",
    datacenter="DC0",
    datastore="ds1",
    datastore_kind="VMFS",
    path="[ds1] db01/db01.vmdk",
    capacity_bytes=100 * GIB,
    controller="SCSI",
    host_moref="host-1",
    host_version="8.0.2",
    eager=True,
    running=True,
    storage_snapshot=StorageSnapshotFacts(system="array", read_by=SAN),
)
VM = ProxyVm(
    vcenter_id="vc",
    moref="vm-1",
    name="proxy1",
    datacenter="DC0",
    host_moref="host-1",
    datastores=("ds1", "ds2"),
    home_datastores=("ds1",),
    home_kinds=("VMFS",),
    free_slots=12,
)
BOTH_WAYS = Connected(readable=True, writable=True, hops=1)
PROXY = ProxyMachine(
    id="p1",
    vm_uuid=UUID_TEXT,
    vms=(VM,),
    confirmed=frozenset({("vc", "vm-1")}),
    connections={("vc/ds1", SAN): BOTH_WAYS, ("vc/ds1", NFS): BOTH_WAYS},
    offered_modes=tuple(TransportMode),
)
ON_NFS = {"datastore_kind": "NFS41"}
ON_NFS3 = {"datastore_kind": "NFS"}
WRITE = {"write": True}


def verdicts(disk: dict[str, Any], proxy: dict[str, Any], mode: TransportMode) -> Any:
    return judge(mode, replace(DISK, **disk), replace(PROXY, **proxy))


def vm(**changes: Any) -> dict[str, Any]:
    return {"vms": (replace(VM, **changes),)}


def link(mode: TransportMode, **changes: Any) -> dict[str, Any]:
    return {"connections": {("vc/ds1", mode): replace(BOTH_WAYS, **changes)}}


@pytest.mark.parametrize(
    ("mode", "disk"),
    [
        (SNAPSHOT, {}),
        (SAN, {}),
        (SAN, WRITE),
        (SAN, {"is_delta": True}),
        (SAN, {"controller": "IDE", "thin": True, "eager": False}),
        (SAN, {"controller": "SATA"}),
        (NFS, ON_NFS),
        (NFS, ON_NFS3),
        (NFS, {**ON_NFS, **WRITE, "thin": True, "eager": False}),
        (NFS, {**ON_NFS, "windows": True, "tools_running": True}),
        (NFS, {**ON_NFS, "windows": True, "quiesced": True}),
        (HOTADD, {}),
        (HOTADD, WRITE),
        (HOTADD, {"controller": "NVMe"}),
        (HOTADD, {"controller": "SATA", "host_version": "6.7.0"}),
        (HOTADD, ON_NFS3),
        (HOTADD, {"is_delta": True, "capacity_bytes": 62 * TIB}),
        (NBDSSL, {"encrypted": True, "is_rdm": True, "is_delta": True, "is_template": True}),
        (NBDSSL, {**WRITE, "thin": True, "eager": False}),
        (NBD, {}),
    ],
)
def test_what_is_in_order_is_usable(mode: TransportMode, disk: dict[str, Any]) -> None:
    verdict = verdicts(disk, {}, mode)
    assert verdict.usable, verdict.text
    assert not verdict.text


def snapshots(**changes: Any) -> dict[str, Any]:
    return {"storage_snapshot": replace(DISK.storage_snapshot or StorageSnapshotFacts(), **changes)}


REFUSED: list[tuple[str, TransportMode, dict[str, Any], dict[str, Any], str]] = [
    ("in-snapshot", NBDSSL, {"obstacle": "the disk is independent"}, {}, "independent"),
    ("in-snapshot", HOTADD, {"obstacle": "the disk is independent"}, {}, "independent"),
    ("vm-snapshot-gone", NBDSSL, snapshots(vm_snapshot_gone=True), {}, "only the storage snapshot"),
    ("vm-snapshot-gone", SAN, snapshots(vm_snapshot_gone=True), {}, "only the storage snapshot"),
    ("storage-snapshot-asked", SNAPSHOT, {"storage_snapshot": None}, {}, "does not ask"),
    ("storage-snapshot-system", SNAPSHOT, snapshots(system=""), {}, "vmhaul storage add"),
    ("storage-snapshot-whole-vm", SNAPSHOT, snapshots(obstacle="disk 2 is elsewhere"), {}, "disk 2"),
    ("storage-snapshot-rdm", SNAPSHOT, {"is_rdm": True}, {}, "raw device mapping"),
    ("storage-snapshot-read-only", SNAPSHOT, WRITE, {}, "never written"),
    ("storage-snapshot-proxy", SNAPSHOT, snapshots(proxies=("p2",)), {}, "not among those"),
    (
        "storage-snapshot-reader",
        SNAPSHOT,
        snapshots(read_by=NFS),
        {"offered_modes": (SAN,)},
        "direct-nfs, which the proxy does not offer",
    ),
    ("direct-encrypted", SNAPSHOT, {"encrypted": True}, {}, "ciphertext"),
    ("direct-encrypted", SAN, {"encrypted": True}, {}, "ciphertext"),
    ("direct-encrypted", NFS, {"encrypted": True, **ON_NFS}, {}, "ciphertext"),
    ("san-vmfs", SAN, {"datastore_kind": "vsan"}, {}, "vsan, not VMFS"),
    ("san-vmfs", SAN, {"datastore_kind": "VVOL"}, {}, "VVOL, not VMFS"),
    ("san-vmfs", SAN, {"datastore_kind": ""}, {}, "unknown kind"),
    ("san-no-vvol-in-vm", SAN, {"vm_on_vvol": True}, {}, "virtual volume"),
    ("san-template", SAN, {"is_template": True}, {}, "template"),
    ("san-rdm", SAN, {"is_rdm": True}, {}, "LUN of its own"),
    ("san-write-thick", SAN, {**WRITE, "thin": True, "eager": False}, {}, "thin"),
    ("san-write-thick", SAN, {**WRITE, "eager": False}, {}, "not zeroed when it was made"),
    ("san-nvme-listed", SAN, {"on_nvme": True}, {}, "lies on NVMe namespaces"),
    ("san-nvme-listed", SAN, {**WRITE, "on_nvme": True}, {}, "`vmhaul proxy edit NAME --datastore`"),
    ("hotadd-confirmed", HOTADD, {}, {"confirmed": frozenset()}, "`vmhaul proxy confirm-vm NAME`"),
    ("hotadd-confirmed", HOTADD, {}, {"confirmed": frozenset({("vc", "vm-2")})}, "proxy1 (vm-1)"),
    ("hotadd-tracking", HOTADD, {}, vm(tracked=True), "switch its change tracking off"),
    ("hotadd-tools", HOTADD, {}, vm(tools_version="guestToolsTooOld"), "too old to be supported"),
    ("hotadd-tools", HOTADD, {}, vm(tools_version="guestToolsBlacklisted"), "known grave fault"),
    ("san-write-base", SAN, {**WRITE, "is_delta": True}, {}, "parent"),
    ("nfs-kind", NFS, {}, {}, "VMFS, not NFS"),
    ("nfs-no-delta", NFS, {**ON_NFS, "is_delta": True}, {}, "delta"),
    (
        "nfs-quiesced-windows",
        NFS,
        {**ON_NFS, "windows": True, "tools_running": True, "quiesced": True},
        {},
        "running Windows VM",
    ),
    ("nfs-rdm", NFS, {**ON_NFS, "is_rdm": True}, {}, "raw device mapping"),
    ("hotadd-ide", HOTADD, {"controller": "IDE"}, {}, "IDE"),
    ("hotadd-sata", HOTADD, {"controller": "SATA", "host_version": "5.5.0"}, {}, "ESXi 5.5.0"),
    ("hotadd-size", HOTADD, {"capacity_bytes": 62 * TIB + 512}, {}, "62 TiB"),
    ("nbd-encrypted", NBD, {"encrypted": True}, {}, "nbdssl only"),
    ("direct-connected", SAN, {}, {"connections": {}}, "has not found datastore ds1"),
    ("direct-connected", NFS, ON_NFS, {"connections": {}}, "has not found datastore ds1"),
    ("direct-connected", SAN, {}, link(SAN, readable=False, reason="LUN naa.6 is not seen"), "naa.6"),
    ("direct-connected", SAN, {}, {"datastores": frozenset({"ds2"})}, "set for the proxy"),
    ("direct-writable", SAN, WRITE, link(SAN, writable=False, reason="read-only device"), "read-only"),
    (
        "direct-writable",
        NFS,
        {**ON_NFS, **WRITE},
        link(NFS, writable=False),
        "may only read datastore ds1",
    ),
    ("nfs-hops", NFS, ON_NFS, {**link(NFS, hops=3), "max_nfs_hops": 2}, "3 routers away"),
    ("hotadd-vm", HOTADD, {}, {"vms": (), "vm_uuid": ""}, "shows no SMBIOS UUID"),
    ("hotadd-vm", HOTADD, {}, {"vms": ()}, f"{UUID_TEXT}) is no VM"),
    ("hotadd-vm", HOTADD, {}, vm(vcenter_id="other"), "is no VM of the disk's vCenter"),
    (
        "hotadd-one-vm",
        HOTADD,
        {},
        {"vms": (VM, replace(VM, moref="vm-2", name="copy"))},
        "copy (vm-2), proxy1 (vm-1)",
    ),
    ("hotadd-not-itself", HOTADD, {"vm_moref": "vm-1"}, {}, "its own disks"),
    ("hotadd-datacenter", HOTADD, {}, vm(datacenter="DC1"), "datacenter DC1, the disk in DC0"),
    ("hotadd-mounted", HOTADD, {}, vm(datastores=("ds2",)), "does not mount datastore ds1"),
    ("hotadd-scsi0", HOTADD, {}, vm(scsi0=False), "no SCSI controller 0"),
    ("hotadd-slot", HOTADD, {}, vm(free_slots=0), "no free slot"),
    ("hotadd-encrypted", HOTADD, {"encrypted": True}, {}, "only an encrypted VM"),
    ("hotadd-vsan", HOTADD, {"datastore_kind": "vsan"}, {}, "on vSAN"),
    ("hotadd-vvol", HOTADD, {"datastore_kind": "VVOL"}, vm(home_datastores=("ds2",)), "virtual volume"),
    ("hotadd-nfs3-host", HOTADD, ON_NFS3, vm(host_moref="host-2"), "another host"),
    (
        "hotadd-vmfs3-file",
        HOTADD,
        {"capacity_bytes": 300 * GIB},
        vm(home_largest_file_bytes=256 * GIB),
        "no file of more than 256 GiB",
    ),
]


@pytest.mark.parametrize(("rule", "mode", "disk", "proxy", "said"), REFUSED)
def test_refused_with_the_reason(
    rule: str, mode: TransportMode, disk: dict[str, Any], proxy: dict[str, Any], said: str
) -> None:
    verdict = verdicts(disk, proxy, mode)
    assert not verdict.usable
    assert [reason.rule for reason in verdict.reasons] == [rule], verdict.text
    assert said in verdict.text


def test_every_rule_has_a_refused_candidate_or_a_remark() -> None:
    assert {rule.id for rule in RULES if not rule.remark} == {case[0] for case in REFUSED}
    assert len({rule.id for rule in RULES}) == len(RULES)


@pytest.mark.parametrize(
    ("mode", "disk", "proxy"),
    [
        (HOTADD, {"encrypted": True}, vm(encrypted=True)),
        (HOTADD, {"datastore_kind": "vsan"}, vm(home_kinds=("vsan",))),
        (HOTADD, {"datastore_kind": "VVOL"}, {}),
        (HOTADD, ON_NFS3, {**vm(host_moref="host-2"), "hotadd_nfs3_any_host": True}),
        (HOTADD, {**ON_NFS3, **WRITE}, vm(host_moref="host-2")),
        (HOTADD, {"datastore_kind": "NFS41"}, vm(host_moref="host-2")),
        (HOTADD, {"capacity_bytes": 256 * GIB}, vm(home_largest_file_bytes=256 * GIB)),
        (HOTADD, {"capacity_bytes": 300 * GIB}, vm(home_largest_file_bytes=512 * GIB)),
        (HOTADD, {}, {"vms": (VM, replace(VM, vcenter_id="other"))}),
        (SAN, {}, {"datastores": frozenset({"ds1"}), "connections": {}}),
        (SAN, {"on_nvme": True}, {"datastores": frozenset({"ds1"})}),
        (HOTADD, {}, vm(tools_version="guestToolsUnmanaged")),
        (SAN, {}, link(SAN, writable=False)),
        (NFS, ON_NFS, {**link(NFS, hops=2), "max_nfs_hops": 2}),
        (NFS, ON_NFS, {**link(NFS, hops=-1), "max_nfs_hops": 0}),
        (SNAPSHOT, snapshots(proxies=("p1",), vm_snapshot_gone=True), {}),
    ],
)
def test_what_lifts_a_refusal(mode: TransportMode, disk: dict[str, Any], proxy: dict[str, Any]) -> None:
    verdict = verdicts(disk, proxy, mode)
    assert verdict.usable, verdict.text


def test_an_at_sign_is_remarked_and_read() -> None:
    verdict = verdicts({"path": "[ds1] a@b/a@b.vmdk"}, {}, NBDSSL)
    assert verdict.usable
    assert [remark.rule for remark in verdict.remarks] == ["network-at-sign"]


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("guestToolsNotInstalled", "not installed"),
        ("guestToolsSupportedOld", "not the latest"),
        ("guestToolsNeedUpgrade", "not the latest"),
        ("guestToolsCurrent", ""),
        ("guestToolsUnmanaged", ""),
        ("", ""),
    ],
)
def test_tools_that_are_not_the_latest_are_remarked_and_the_disk_added(version: str, said: str) -> None:
    verdict = verdicts({}, vm(tools_version=version), HOTADD)
    assert verdict.usable
    assert [remark.rule for remark in verdict.remarks] == (["hotadd-tools-latest"] if said else [])
    assert all(said in remark.text for remark in verdict.remarks)


def test_all_reasons_are_told() -> None:
    verdict = verdicts({"encrypted": True, "is_template": True}, {"connections": {}}, SAN)
    assert [reason.rule for reason in verdict.reasons] == [
        "direct-encrypted",
        "san-template",
        "direct-connected",
    ]
    assert verdict.text.count("; ") >= 2


def test_rules_of_writing_say_nothing_of_reading() -> None:
    for rule in (*DISK_RULES, *PROXY_RULES):
        assert rule.use.covers(write=True) == (rule.use is not Use.READ)
        assert rule.use.covers(write=False) == (rule.use is not Use.WRITE)


@pytest.mark.parametrize(
    ("machine", "equal"),
    [
        (UUID_TEXT, True),
        (UUID_TEXT.upper(), True),
        (str(UUID(bytes=UUID(UUID_TEXT).bytes_le)), True),
        ("420a1b2c-3d4e-5f60-7182-93a4b5c6d7e9", False),
        ("2c1b0a42-3d4e-5f60-7182-93a4b5c6d7e8", False),
        ("", False),
        ("not a uuid", False),
    ],
)
def test_the_own_vm_in_either_byte_order(machine: str, equal: bool) -> None:
    assert same_uuid(machine, UUID_TEXT) is equal
    assert not same_uuid(UUID_TEXT, "")


def test_a_reach_keeps_only_what_proxies_are_judged_by() -> None:
    disks = [
        replace(DISK, vm_moref=f"vm-{n}", vm_name=f"vm{n}", host_moref=f"host-{n}", path=f"[ds1] {n}")
        for n in range(50)
    ]
    assert len({reach_of(disk) for disk in disks}) == 1
    assert len({reach_of(replace(disk, datastore_kind="NFS")) for disk in disks}) == 50
    proxies = frozenset({("vc", "vm-7"), ("other", "vm-8")})
    assert len({reach_of(disk, proxy_vms=proxies) for disk in disks}) == 2


FACTS = st.builds(
    DiskFacts,
    vcenter_id=st.just("vc"),
    vm_moref=st.sampled_from(["vm-1", "vm-9"]),
    vm_name=st.just("vm"),
    datacenter=st.sampled_from(["DC0", "DC1"]),
    datastore=st.sampled_from(["ds1", "ds2", "ds3"]),
    datastore_kind=st.sampled_from(["VMFS", "NFS", "NFS41", "vsan", "VVOL", ""]),
    path=st.sampled_from(["[ds1] a/a.vmdk", "[ds1] a@b/a.vmdk"]),
    capacity_bytes=st.sampled_from([512, 300 * GIB, 63 * TIB]),
    controller=st.sampled_from(["SCSI", "SATA", "NVMe", "IDE", ""]),
    write=st.booleans(),
    host_moref=st.sampled_from(["host-1", "host-2", ""]),
    encrypted=st.booleans(),
    is_delta=st.booleans(),
    is_template=st.booleans(),
    storage_snapshot=st.none() | st.builds(StorageSnapshotFacts, proxies=st.just(("p2",))),
)
MACHINES = st.builds(
    ProxyMachine,
    id=st.sampled_from(["p1", "p2"]),
    vm_uuid=st.sampled_from(["", UUID_TEXT]),
    vms=st.lists(st.builds(replace, st.just(VM), scsi0=st.booleans()), max_size=2).map(tuple),
    connections=st.dictionaries(
        st.tuples(st.sampled_from(["vc/ds1", "vc/ds2"]), st.sampled_from([SAN, NFS])),
        st.builds(Connected, readable=st.booleans(), writable=st.booleans()),
    ),
    datastores=st.none() | st.frozensets(st.sampled_from(["ds1", "ds2"])),
    offered_modes=st.just(()),
)


@given(FACTS, MACHINES, st.sampled_from(list(TransportMode)))
def test_what_does_not_matter_to_a_mode_changes_no_verdict(
    disk: DiskFacts, proxy: ProxyMachine, mode: TransportMode
) -> None:
    networks = ("192.0.2.0/24",)
    reach = reach_of(replace(disk, host_address="192.0.2.9"), networks=networks)
    kept = what_matters(mode, reach)
    verdict = judge_proxy(mode, reach, proxy)
    if kept is None:
        assert verdict == Verdict(mode=mode)
    else:
        assert judge_proxy(mode, kept, proxy) == verdict
        assert what_matters(mode, kept) == kept


def test_a_proxy_of_which_no_host_is_known_is_on_the_host_of_no_disk() -> None:
    disk = replace(DISK, datastore_kind="NFS", host_moref="host-7")
    nowhere = replace(PROXY, vms=(replace(VM, host_moref=""),))
    reach = reach_of(disk, proxy_hosts=frozenset())
    said = judge_proxy(HOTADD, reach, nowhere)
    assert "hotadd-nfs3-host" in [reason.rule for reason in said.reasons]


@given(FACTS, MACHINES, st.sampled_from(list(TransportMode)))
def test_hosts_without_proxies_need_not_be_told_apart(
    disk: DiskFacts, proxy: ProxyMachine, mode: TransportMode
) -> None:
    hosts = frozenset((vm.vcenter_id, vm.host_moref) for vm in proxy.vms)
    reach = reach_of(disk, proxy_hosts=hosts)
    assert judge_proxy(mode, reach, proxy) == judge_proxy(mode, reach_of(disk), proxy)
    elsewhere = {reach_of(replace(disk, host_moref=f"other-{n}"), proxy_hosts=hosts) for n in (1, 2)}
    assert len(elsewhere) == 1


@given(FACTS, MACHINES, st.sampled_from(list(TransportMode)))
def test_judging_alone_and_in_pairs_is_judging_at_once(
    disk: DiskFacts, proxy: ProxyMachine, mode: TransportMode
) -> None:
    verdict = judge(mode, disk, proxy)
    reach = reach_of(disk, proxy_vms=frozenset((vm.vcenter_id, vm.moref) for vm in proxy.vms))
    apart = judge_disk(mode, disk).reasons + judge_proxy(mode, reach, proxy).reasons
    assert verdict.reasons == apart
    assert verdict.usable == (not apart)
    assert bool(verdict.text) == bool(apart)
    if mode is NBDSSL:
        assert verdict.usable == (not disk.obstacle)
