from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from backup_server.services.placement import Limit, decide
from backup_server.services.surveys import NETWORK_RANK, ProxyFacts, Surveyor, claim_rank, survey
from backup_server.services.wishes import FILE_MODE, Wish, refused_modes, wish_of
from transports.base import TransportMode
from transports.rules import (
    NETWORK_MODES,
    Connected,
    DiskFacts,
    ProxyMachine,
    ProxyVm,
    StorageSnapshotFacts,
)

SNAPSHOT, SAN, NFS, HOTADD, NBDSSL, NBD = TransportMode
BACKUP = "backup-disk"

DISK = DiskFacts(
    vcenter_id="vc",
    vm_moref="vm-9",
    vm_name="db01",
    datacenter="DC0",
    datastore="ds",
    datastore_kind="VMFS",
    path="[ds] db01/db01.vmdk",
    capacity_bytes=1 << 30,
    controller="SCSI",
    host_moref="host-1",
)
ON_NFS = replace(DISK, datastore_kind="NFS41")
VM = ProxyVm(
    vcenter_id="vc",
    moref="vm-1",
    name="px",
    datacenter="DC0",
    host_moref="host-1",
    datastores=("ds",),
    home_datastores=("ds",),
    free_slots=9,
)


def machine(name: str, *modes: TransportMode, hops: int = 1, vm: bool = True) -> ProxyMachine:
    """A machine that reaches the datastore in `modes`."""
    return ProxyMachine(
        id=name,
        vm_uuid="420a1b2c-3d4e-5f60-7182-93a4b5c6d7e8",
        vms=(replace(VM, moref=f"vm-{name}"),) if vm and HOTADD in modes else (),
        confirmed=frozenset({("vc", f"vm-{name}")}),
        connections={
            ("vc/ds", mode): Connected(readable=True, writable=True, hops=hops)
            for mode in modes
            if mode in (SAN, NFS)
        },
        offered_modes=modes,
    )


def proxy(name: str, *modes: TransportMode, hops: int = 1, **changes: object) -> ProxyFacts:
    offered = modes or (NBDSSL, NBD)
    base = ProxyFacts(
        id=name,
        name=name,
        enabled=True,
        enrolled=True,
        online=True,
        stopping=False,
        slots=4,
        used=0,
        offered_modes=offered,
        allowed_modes=(),
        machine=machine(name, *offered, hops=hops),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def wish(
    *modes: TransportMode,
    disk: DiskFacts | None = DISK,
    proxies: Iterable[str] = (),
    left: Iterable[tuple[str, str, str]] = (),
    failover: bool = True,
) -> Wish:
    asked = [mode.value for mode in modes]
    return wish_of(BACKUP, disk, proxies, asked, left=left, failover=failover)


def best(wanted: Wish, *proxies: ProxyFacts) -> dict[str, TransportMode]:
    return dict(survey(wanted, proxies).best)


def why(wanted: Wish, proxies: Iterable[ProxyFacts], name: str, mode: TransportMode) -> str:
    return survey(wanted, list(proxies)).reasons[name, mode]


def test_nbd_only_where_the_job_names_it() -> None:
    assert best(wish(), proxy("a")) == {"a": NBDSSL}
    assert best(wish(), proxy("a", NBD)) == {}
    assert best(wish(NBD), proxy("a", NBD)) == {"a": NBD}
    assert best(wish(NBD, NBDSSL), proxy("a")) == {"a": NBDSSL}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"enabled": False}, "disabled"),
        ({"enrolled": False}, "not enrolled"),
        ({"online": False}, "offline"),
        ({"stopping": True}, "stopping"),
        ({"used": 4}, "all 4 task slots"),
        ({"offered_modes": (NBD,)}, "does not offer nbdssl"),
        ({"offered_modes": (NBD,), "missing": {NBDSSL: "no TLS here"}}, "nbdssl: no TLS here"),
        ({"allowed_modes": (NBD,)}, "switched off"),
    ],
)
def test_every_refusal_has_its_reason(changes: dict[str, object], reason: str) -> None:
    decision = decide(wish(), [proxy("a", **changes), proxy("z", enrolled=False)], [])  # type: ignore[arg-type]
    assert decision.chosen is None
    assert reason in decision.candidates[0].reason
    assert reason in decision.reason


def test_jobs_that_name_proxies() -> None:
    decision = decide(wish(proxies=("b",)), [proxy("a"), proxy("b", used=3)], [])
    assert decision.chosen is not None
    assert decision.chosen.proxy_id == "b"
    assert decision.candidates[0].reason == "other proxies are named for it"


def test_best_mode_first_then_least_busy() -> None:
    san = proxy("san", SAN, NBDSSL, used=3)
    decision = decide(wish(), [proxy("a", used=2), san, proxy("b", used=1)], [])
    assert decision.chosen is not None
    assert (decision.chosen.proxy_id, decision.chosen.mode) == ("san", SAN)
    assert decision.fallbacks == (NBDSSL,)
    decision = decide(wish(), [proxy("a", used=2), proxy("b", used=1), proxy("c", slots=8, used=1)], [])
    assert decision.chosen is not None
    assert decision.chosen.proxy_id == "c"
    assert decision.fallbacks == ()


def test_the_order_of_the_modes() -> None:
    proxies = [
        proxy("net"),
        proxy("vm", HOTADD, NBDSSL),
        proxy("san", SAN, HOTADD, NBDSSL),
        proxy("array", SNAPSHOT, SAN, NBDSSL),
    ]
    disk = replace(DISK, storage_snapshot=StorageSnapshotFacts(system="array", read_by=SAN))
    order = []
    while proxies:
        chosen = decide(wish(disk=disk), proxies, []).chosen
        assert chosen is not None
        order.append((chosen.proxy_id, chosen.mode))
        proxies = [one for one in proxies if one.id != chosen.proxy_id]
    assert order == [("array", SNAPSHOT), ("san", SAN), ("vm", HOTADD), ("net", NBDSSL)]


def test_a_mode_that_the_rules_refuse_is_no_candidate_of_that_proxy() -> None:
    blind = proxy("blind", SAN, NBDSSL)
    blind = replace(blind, machine=replace(blind.machine or ProxyMachine(id="x"), connections={}))
    decision = decide(wish(), [blind], [])
    assert decision.chosen is not None
    assert decision.chosen.mode is NBDSSL
    refused = next(one for one in decision.candidates if one.mode is SAN)
    assert "has not found datastore ds" in refused.reason
    assert not refused.reaches


def test_a_proxy_that_never_looked_around_works_in_network_modes() -> None:
    fresh = proxy("a", SAN, HOTADD, NBDSSL, machine=None)
    assert best(wish(), fresh) == {"a": NBDSSL}


def test_what_no_proxy_can_help_with_is_told_apart() -> None:
    disk = replace(DISK, controller="IDE", is_template=True)
    said = {one.mode: one.reason for one in refused_modes(BACKUP, disk, [])}
    assert set(said) == {SNAPSHOT, SAN, NFS, HOTADD, NBD}
    assert "IDE" in said[HOTADD]
    assert "in clear" in said[NBD]
    decision = decide(wish(disk=disk), [proxy("a", HOTADD, NBDSSL)], [], refused=())
    assert {one.mode for one in decision.candidates} == {NBDSSL}


def test_a_disk_that_no_mode_admits_is_hopeless() -> None:
    wanted = wish(NFS, SNAPSHOT)
    assert "VMFS, not NFS" in wanted.impossible
    assert best(wanted, proxy("a", NFS, NBDSSL)) == {}
    decision = decide(wanted, [proxy("a", NFS, NBDSSL)], [])
    assert decision.chosen is None
    assert decision.reason == wanted.impossible


def test_tasks_of_an_earlier_release_go_through_hosts() -> None:
    wanted = wish(disk=None)
    assert wanted.modes == (NBDSSL,)
    assert best(wanted, proxy("a", SAN, NBDSSL)) == {"a": NBDSSL}


# ---- network as a fallback ------------------------------------------------------------------------


def test_no_failover_keeps_network_out_where_another_mode_can_read() -> None:
    san, net = proxy("san", SAN, NBDSSL, used=4), proxy("net")
    wanted = wish(failover=False)
    assert best(wanted, san, net) == {"san": SAN}
    assert "san reaches the disk by direct-san" in why(wanted, [san, net], "net", NBDSSL)
    assert survey(wanted, [san, net]).after("san", SAN) == ()
    decision = decide(wanted, [san, net], [])
    assert decision.chosen is None
    assert "all 4 task slots are taken" in decision.reason


def test_no_failover_still_uses_network_where_nothing_else_can() -> None:
    assert best(wish(failover=False), proxy("net"), proxy("nfs", NFS, NBDSSL)) == {
        "net": NBDSSL,
        "nfs": NBDSSL,
    }


def test_no_failover_after_the_better_mode_failed_leaves_nothing() -> None:
    left = [("san", "direct-san", "LUN lost")]
    wanted = wish(failover=False, left=left)
    assert best(wanted, proxy("san", SAN, NBDSSL), proxy("net")) == {}
    assert "LUN lost" in why(wanted, [proxy("san", SAN, NBDSSL)], "san", SAN)


def test_a_proxy_that_lets_no_network_mode_take_over() -> None:
    mine = proxy("mine", HOTADD, NBDSSL, failover_to_network=False)
    assert best(wish(), mine, proxy("net")) == {"mine": HOTADD, "net": NBDSSL}
    assert survey(wish(), [mine]).after("mine", HOTADD) == ()
    blind = replace(mine, machine=replace(mine.machine or ProxyMachine(id="x"), vms=()))
    assert best(wish(), blind) == {"mine": NBDSSL}


def test_what_failed_before_is_not_chosen_again() -> None:
    wanted = wish(left=[("a", "hotadd", "no slot"), ("b", "nbdssl", "cut")])
    a, b = proxy("a", HOTADD, NBDSSL), proxy("b", HOTADD, NBDSSL)
    assert best(wanted, a, b) == {"a": NBDSSL, "b": HOTADD}
    assert survey(wanted, [a, b]).after("b", HOTADD) == ()
    assert wanted.key != wish().key
    assert wish(left=[("a", "hotadd", "no slot")], disk=replace(DISK, controller="IDE")).left == ()


# ---- direct NFS -----------------------------------------------------------------------------------


def test_fewest_hops_first_and_no_worse_mode_while_they_are_busy() -> None:
    near = proxy("near", NFS, NBDSSL, hops=0, used=4)
    far = proxy("far", NFS, HOTADD, NBDSSL, hops=2)
    wanted = wish(disk=ON_NFS)
    decision = decide(wanted, [far, near, proxy("net")], [])
    assert decision.chosen is None
    assert best(wanted, far, near, proxy("net")) == {"near": NFS}
    assert "near is nearer to the NFS server: 0 routers" in why(wanted, [far, near], "far", NFS)
    assert "waits for direct-nfs" in why(wanted, [far, near], "far", HOTADD)
    assert survey(wanted, [far, near]).after("near", NFS) == (NBDSSL,)


def test_equal_hops_go_to_the_least_busy() -> None:
    a, b = proxy("a", NFS, NBDSSL, used=2), proxy("b", NFS, NBDSSL, used=1)
    chosen = decide(wish(disk=ON_NFS), [a, b], []).chosen
    assert chosen is not None
    assert (chosen.proxy_id, chosen.mode) == ("b", NFS)


def test_named_proxies_are_taken_whatever_their_hops_and_waited_for() -> None:
    near, far = proxy("near", NFS, NBDSSL, hops=0, used=4), proxy("far", NFS, HOTADD, NBDSSL, hops=9)
    named = wish(disk=ON_NFS, proxies=("near", "far"))
    chosen = decide(named, [near, far], []).chosen
    assert chosen is not None
    assert (chosen.proxy_id, chosen.mode) == ("far", NFS)
    busy = replace(far, used=4)
    assert decide(named, [near, busy, proxy("other")], []).chosen is None
    assert best(named, near, busy) == {"near": NFS, "far": NFS}


def test_a_nearer_proxy_that_is_offline_is_not_waited_for() -> None:
    near, far = proxy("near", NFS, NBDSSL, hops=0, online=False), proxy("far", NFS, NBDSSL, hops=2)
    chosen = decide(wish(disk=ON_NFS), [near, far], []).chosen
    assert chosen is not None
    assert (chosen.proxy_id, chosen.mode) == ("far", NFS)
    assert best(wish(disk=ON_NFS), proxy("x", NFS, NBDSSL, hops=-1))["x"] is NFS


# ---- limits, claims, records ----------------------------------------------------------------------


def test_limits_refuse_everybody() -> None:
    full = Limit(what="repository main", used=2, maximum=2)
    free = Limit(what="datastore ds", used=0, maximum=0)
    decision = decide(wish(), [proxy("a")], [full, free])
    assert decision.chosen is None
    assert decision.candidates[0].reason == "repository main has all 2 tasks it may have"


def test_the_budget_of_a_host_is_for_network_modes() -> None:
    nfc = Limit(what="the NFC service of host host-1", used=6, maximum=6, modes=NETWORK_MODES)
    decision = decide(wish(), [proxy("a"), proxy("b", HOTADD, NBDSSL)], [nfc])
    assert decision.chosen is not None
    assert decision.chosen.mode is HOTADD
    assert (
        "NFC service of host host-1" in next(c for c in decision.candidates if c.mode is NBDSSL).reason
    )
    assert decide(wish(), [proxy("a")], [nfc]).chosen is None
    copies = wish_of("copy-disk", None, [], [])
    assert decide(copies, [proxy("a")], [nfc]).chosen is not None
    for near in (True, False):
        ranks = {mode: claim_rank(mode, near=near) for mode in TransportMode}
        assert {mode for mode, rank in ranks.items() if rank >= NETWORK_RANK} == NETWORK_MODES


def test_a_claim_is_confirmed_for_its_proxy_or_not_at_all() -> None:
    proxies = [proxy("a"), proxy("b", used=3)]
    claimed = decide(wish(), proxies, [], claimed_by="b")
    assert claimed.chosen is not None
    assert claimed.chosen.proxy_id == "b"
    assert len(claimed.candidates) == 2
    assert decide(wish(), [proxy("a"), proxy("b", used=4)], [], claimed_by="b").chosen is None


def test_restores_to_files_need_no_mode() -> None:
    to_file = wish_of("restore-disk-to-file", None, ["a"], ["nbd"])
    assert to_file.modes == ()
    assert best(to_file, proxy("a", offered_modes=())) == {"a": FILE_MODE}
    assert decide(to_file, [proxy("a", offered_modes=())], []).chosen is not None
    assert refused_modes("restore-disk-to-file", None, ["nbd"]) == ()


def test_no_proxy_at_all() -> None:
    decision = decide(wish(), [], [])
    assert "vmhaul proxy add" in decision.reason
    assert decision.to_json()["proxy"] is None


def test_a_large_fleet_is_named_in_part_and_counted() -> None:
    fleet = [proxy(f"p{n:03}", online=n % 2 == 0) for n in range(200)]
    decision = decide(wish(), fleet, [], claimed_by="p100")
    stored = decision.to_json()
    assert len(decision.candidates) == 200
    assert len(stored["candidates"]) == 12
    assert stored["candidates"][0]["proxy"] == "p100"
    assert stored["others"] == {"accepted": 88, "the proxy is offline": 100}
    reason = decide(wish(), [proxy(f"p{n}", online=False) for n in range(9)], []).reason
    assert reason == "p0, p1, p2, p3, p4 and 4 more: the proxy is offline"


def test_the_record_names_refused_modes_and_where_it_may_go_on() -> None:
    refused = refused_modes(BACKUP, DISK, [])
    stored = decide(wish(), [proxy("a", SAN, NBDSSL)], [], refused=refused).to_json()
    assert stored["mode"] == "direct-san"
    assert stored["fallbacks"] == ["nbdssl"]
    modes = {one["mode"]: one["reason"] for one in stored["modes"]}
    assert set(modes) == {"storage-snapshot", "direct-nfs", "nbd", "hotadd"}
    assert modes["hotadd"] == "no proxy offers it"


def test_wishes_with_the_same_content_have_one_key() -> None:
    def key(disk: DiskFacts, proxies: list[str], modes: list[str]) -> str:
        return wish_of(BACKUP, disk, proxies, modes).key

    one = key(DISK, ["b", "a"], ["nbd", "nbdssl"])
    assert one == key(replace(DISK, vm_moref="vm-10", path="[ds] x"), ["a", "b"], ["nbdssl", "nbd"])
    others = [
        key(replace(DISK, datastore="ds2"), ["a", "b"], ["nbdssl", "nbd"]),
        key(DISK, ["a"], ["nbdssl", "nbd"]),
        key(DISK, ["a", "b"], ["nbd"]),
    ]
    assert len({one, *others}) == 4


def test_what_failed_counts_in_a_key_and_not_how_it_is_put() -> None:
    def key(*left: tuple[str, str, str]) -> str:
        return wish(left=left).key

    assert key(("a", "nbdssl", "at 10:01 it broke")) == key(("a", "nbdssl", "at 10:02 it broke"))
    assert len({key(), key(("a", "nbdssl", "")), key(("b", "nbdssl", ""))}) == 3


# ---- near and far ---------------------------------------------------------------------------------


def near(*names: str, disk: DiskFacts | None = DISK, proxies: Iterable[str] = ()) -> Wish:
    """A disk for whose repository these proxies are set to be near."""
    return wish_of(BACKUP, disk, proxies, [], near=names)


def test_proxies_near_the_repository_come_before_better_modes() -> None:
    fleet = [proxy("a", NBDSSL), proxy("b", SAN, NBDSSL), proxy("c", NBDSSL, used=3)]
    decision = decide(near("a", "c"), fleet, [])
    assert decision.chosen is not None
    assert (decision.chosen.proxy_id, decision.chosen.mode) == ("a", NBDSSL)
    assert "set to be near the repository" in decision.reason
    assert not decision.warning
    assert why(near("a", "c"), fleet, "b", SAN) == (
        "proxies that are set to be near the repository come first: a, c"
    )
    # They are waited for while they work, as long as one is there.
    busy = [proxy("a", NBDSSL, used=4), proxy("b", SAN, NBDSSL)]
    assert decide(near("a"), busy, []).chosen is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"online": False}, "the proxy is offline"),
        ({"stopping": True}, "the proxy is stopping"),
        ({"slots": 0}, "the proxy has no task slots"),
        ({"enabled": False}, "the proxy is disabled"),
        ({"offered_modes": (HOTADD,)}, "the proxy does not offer nbdssl"),
    ],
)
def test_where_none_near_can_take_it_any_other_may(changes: dict[str, Any], reason: str) -> None:
    decision = decide(near("a"), [proxy("a", **changes), proxy("b")], [])
    assert decision.chosen is not None
    assert decision.chosen.proxy_id == "b"
    assert decision.warning == (
        f"no proxy near the repository can take the disk, so any other may: a: {reason}"
    )
    assert decision.warning in decision.to_json()["remarks"]


def test_named_proxies_are_used_though_none_is_near_the_repository() -> None:
    fleet = [proxy("a"), proxy("b")]
    decision = decide(near("a", proxies=["b"]), fleet, [])
    assert decision.chosen is not None
    assert decision.chosen.proxy_id == "b"
    assert decision.warning == (
        "the job names only proxies that are not near its repository; near it: a"
    )
    assert best(near("a", proxies=["a", "b"]), *fleet) == {"a": NBDSSL}
    assert best(wish_of("copy-disk", None, [], [], near=["b"]), *fleet) == {"b": FILE_MODE}


HERE, THERE = "192.0.2.0/24", "198.51.100.0/24"


def in_network(name: str, network: str, **changes: object) -> ProxyFacts:
    one = proxy(name, **changes)
    return replace(one, machine=replace(one.machine or ProxyMachine(id=name), networks=(network,)))


def test_among_network_proxies_the_one_in_the_hosts_network_comes_first() -> None:
    disk = replace(DISK, host_address="192.0.2.10")
    wanted = wish_of(BACKUP, disk, [], [], networks={HERE, THERE})
    assert wanted.reach is not None
    assert wanted.reach.networks == (HERE,)
    fleet = [in_network("a", THERE), in_network("b", HERE, used=3)]
    decision = decide(wanted, fleet, [])
    assert decision.chosen is not None
    assert decision.chosen.proxy_id == "b"
    assert f"in the host's network {HERE}" in decision.reason
    seen = survey(wanted, fleet)
    assert seen.rank("b") < seen.rank("a")
    # It is preferred, not demanded; and only for the network modes.
    full = decide(wanted, [fleet[0], in_network("b", HERE, used=4)], [])
    assert full.chosen is not None
    assert full.chosen.proxy_id == "a"
    san = [proxy("a", SAN), in_network("b", HERE)]
    assert survey(wanted, san).rank("a") < survey(wanted, san).rank("b")
    # A host in nobody's network makes no difference.
    alone = wish_of(BACKUP, replace(DISK, host_address="203.0.113.9"), [], [], networks={HERE, THERE})
    assert survey(alone, fleet).far == frozenset()
    assert alone.key == wish_of(BACKUP, DISK, [], [], networks={HERE}).key


def test_on_vsan_hotadd_goes_to_the_host_that_has_the_data() -> None:
    disk = replace(DISK, datastore_kind="vsan", data_hosts=("host-7",))
    wanted = wish_of(BACKUP, disk, [], [HOTADD.value])

    def on_host(name: str, host: str, used: int) -> ProxyFacts:
        vm = replace(VM, moref=f"vm-{name}", host_moref=host, home_kinds=("vsan",))
        one = proxy(name, HOTADD, used=used)
        return replace(one, machine=replace(one.machine or ProxyMachine(id=name), vms=(vm,)))

    decision = decide(wanted, [on_host("a", "host-1", 0), on_host("b", "host-7", 2)], [])
    assert decision.chosen is not None
    assert decision.chosen.proxy_id == "b"
    assert "on a host that has most of the VM's data" in decision.reason


def test_a_proxy_that_opens_no_directories_takes_nothing_of_them() -> None:
    windows = proxy("a", no_directories="it runs Windows")
    linux = proxy("b", used=3)
    surveyor = Surveyor([windows, linux])
    in_bucket = wish()
    in_directory = wish_of(BACKUP, DISK, [], [], directory=True)
    assert in_directory.key != in_bucket.key
    for _ in range(2):  # both go by the same columns, and neither spoils them for the other
        assert surveyor.survey(in_bucket).best == {"a": NBDSSL, "b": NBDSSL}
        seen = surveyor.survey(in_directory)
        assert seen.best == {"b": NBDSSL}
        assert seen.reasons["a", NBDSSL] == "the proxy opens no directories: it runs Windows"
        assert seen.after("a", NBDSSL) == ()
    for kind in ("copy-disk", "restore-disk-to-file"):
        assert best(wish_of(kind, None, [], [], directory=True), windows, linux) == {"b": FILE_MODE}
        assert best(wish_of(kind, None, [], []), windows, linux) == {"a": FILE_MODE, "b": FILE_MODE}
    decision = decide(in_directory, [windows], [])
    assert decision.chosen is None
    assert decision.reason == "a: the proxy opens no directories: it runs Windows"
    # It changed: what is known of it is not kept.
    surveyor.follow([replace(windows, no_directories=""), linux])
    assert surveyor.survey(in_directory).best == {"a": NBDSSL, "b": NBDSSL}


def test_proxies_near_a_directory_that_open_none_are_not_waited_for() -> None:
    windows, linux = proxy("a", no_directories="it runs Windows"), proxy("b")
    seen = survey(wish_of(BACKUP, DISK, [], [], near=["a"], directory=True), [windows, linux])
    assert seen.best == {"b": NBDSSL}
    assert "opens no directories" in seen.warning
