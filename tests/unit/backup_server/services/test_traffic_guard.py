"""What rules that ask for encryption forbid."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from backup_server.db.tables import Repository
from backup_server.services import explanations, placement, traffic_guard, traffic_rules
from backup_server.services.context import Context
from backup_server.services.lookups import Lookups
from backup_server.services.networks import parse_address
from backup_server.services.surveys import ProxyFacts
from backup_server.services.task_ends import Ends, ProxyEnd, proxy_end
from backup_server.services.traffic_guard import Forbidden
from backup_server.services.wishes import wish_of
from tests.support.history import Clock, Seeded
from transports.base import TransportMode
from transports.rules import DiskFacts
from transports.vsphere.model import HostAddress

DISK = DiskFacts(
    vcenter_id="vc-1",
    vm_moref="vm-1",
    vm_name="db01",
    datacenter="dc",
    datastore="nas",
    datastore_kind="NFS",
    path="[nas] db01/db01.vmdk",
    capacity_bytes=1 << 30,
    controller="SCSI",
    host_moref="host-1",
)
HERE = {
    "near": ProxyEnd(addresses=frozenset({parse_address("10.0.0.5")})),
    "far": ProxyEnd(addresses=frozenset({parse_address("172.16.0.5")})),
}


class OneHost:
    def host_addresses(self, moref: str) -> tuple[HostAddress, ...]:
        del moref
        return (HostAddress(address="10.0.1.9"),)


@pytest.fixture
def ends(clock: Clock, ctx: Context) -> Iterator[Ends]:
    lookups = Lookups(clock, ctx.log)
    yield Ends(lambda _: OneHost(), lookups)  # type: ignore[arg-type, return-value]
    lookups.close()


def task(**values: Any) -> SimpleNamespace:
    facts = {
        "kind": "backup-disk",
        "vcenter_id": "vc-1",
        "host_moref": "host-1",
        "datastore": "vc-1/ssd",
        "repository_id": "repo-1",
        "order": {"disk": {"storage": {"nfs_hosts": ["10.0.1.20"]}}},
    }
    return SimpleNamespace(**{**facts, **values})


def rule(ctx: Context, **more: Any) -> None:
    body = {"name": "lan", "source": ["10.0.0.0/24"], "target": ["10.0.1.0/24"], "encrypt": True}
    traffic_rules.add(ctx, {**body, **more})


def forbidden(ctx: Context, ends: Ends, row: Any) -> Forbidden:
    with ctx.db.read() as s:
        return traffic_guard.read(s, ends, lambda: HERE, wait_s=60).forbidden(row)


def test_modes_in_the_clear_are_forbidden_where_the_rule_covers(
    ctx: Context, seeded: Seeded, ends: Ends
) -> None:
    del seeded
    assert forbidden(ctx, ends, task()) == ()
    rule(ctx)
    found = forbidden(ctx, ends, task())
    assert [(proxy, mode) for proxy, mode, _ in found] == [("near", "direct-nfs"), ("near", "nbd")]
    assert found[1][2] == "traffic rule lan asks for encryption, and nbd sends the disk in the clear"


def test_a_lun_over_iscsi_is_read_in_the_clear_where_the_rule_covers_its_portal(
    ctx: Context, seeded: Seeded, ends: Ends
) -> None:
    del seeded
    rule(ctx)
    san = {
        name: proxy_end(["10.0.0.5/24"], [("vc-1/ssd", portals)])
        for name, portals in (("iscsi", ["10.0.1.40"]), ("other", ["10.3.0.1"]), ("fibre", []))
    }
    with ctx.db.read() as s:
        guard = traffic_guard.read(s, ends, lambda: san, wait_s=60)
        found = guard.forbidden(task())
        elsewhere = guard.forbidden(task(datastore="vc-1/other"))
    why = "traffic rule lan asks for encryption, and iSCSI sends the disk in the clear"
    assert [one for one in found if one[1] == "direct-san"] == [("iscsi", "direct-san", why)]
    assert not [one for one in elsewhere if one[1] == "direct-san"]


def test_a_repository_in_the_clear_is_forbidden_in_every_mode(
    ctx: Context, seeded: Seeded, ends: Ends
) -> None:
    del seeded
    with ctx.db() as s:
        s.query(Repository).one().location = "s3://b/x?endpoint=http://10.0.1.30:9000"
    rule(ctx)
    found = forbidden(ctx, ends, task())
    assert {mode for proxy, mode, _ in found if proxy == "near"} == {
        mode.value for mode in TransportMode
    }
    assert all("reached by http, in the clear" in why for _, mode, why in found if mode == "hotadd")
    assert not [one for one in found if one[0] == "far"]
    copy = task(kind="copy-disk", order={"source": {"location": "/here"}})
    assert [(proxy, mode) for proxy, mode, _ in forbidden(ctx, ends, copy)] == [("near", "nbdssl")]


def test_another_mode_is_chosen_and_the_reason_is_told(
    ctx: Context, seeded: Seeded, ends: Ends
) -> None:
    del seeded
    rule(ctx)
    proxies = [
        ProxyFacts(
            id="near",
            name="near",
            enabled=True,
            enrolled=True,
            online=True,
            stopping=False,
            slots=2,
            used=0,
            offered_modes=(TransportMode.NBDSSL, TransportMode.NBD),
            allowed_modes=(),
        )
    ]
    wish = wish_of("backup-disk", None, (), ["nbd", "nbdssl"], forbidden=forbidden(ctx, ends, task()))
    decision = placement.decide(wish, proxies, [])
    assert decision.chosen is not None
    assert decision.chosen.mode is TransportMode.NBDSSL
    assert decision.fallbacks == (), "nor may it go on in the clear"
    only = wish_of("backup-disk", None, (), ["nbd"], forbidden=forbidden(ctx, ends, task()))
    refused = placement.decide(only, proxies, [])
    assert refused.chosen is None
    assert "traffic rule lan asks for encryption" in refused.reason


def test_the_guard_stays_the_same_until_something_changes(
    ctx: Context, seeded: Seeded, ends: Ends
) -> None:
    del seeded
    with ctx.db.read() as s:
        assert traffic_guard.read(s, ends, lambda: HERE) is traffic_guard.NO_GUARD
    rule(ctx)
    with ctx.db.read() as s:
        first = traffic_guard.read(s, ends, lambda: HERE)
        assert traffic_guard.read(s, ends, lambda: HERE, first) is first
    traffic_rules.edit(ctx, "lan", {"target": ["10.0.2.0/24"]})
    with ctx.db.read() as s:
        second = traffic_guard.read(s, ends, lambda: HERE, first, wait_s=60)
    assert second is not first
    assert second.forbidden(task()) == ()


def test_a_plan_knows_the_nfs_server(ctx: Context, seeded: Seeded, ends: Ends) -> None:
    del seeded
    rule(ctx)
    with ctx.db.read() as s:
        guard = traffic_guard.read(s, ends, lambda: HERE, wait_s=60)
    told = explanations._as_task(DISK, "repo-1", ["10.0.1.20"])
    assert ("near", "direct-nfs") in {(proxy, mode) for proxy, mode, _ in guard.forbidden(told)}
    elsewhere = explanations._as_task(DISK, "repo-1", ["10.0.2.20"])
    assert ("near", "direct-nfs") not in {(p, mode) for p, mode, _ in guard.forbidden(elsewhere)}


def test_a_vcenter_that_hangs_holds_nobody_up(
    ctx: Context, seeded: Seeded, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    del seeded
    answer = threading.Event()
    known = OneHost.host_addresses

    def late(self: OneHost, moref: str) -> tuple[HostAddress, ...]:
        assert answer.wait(60)
        return known(self, moref)

    monkeypatch.setattr(OneHost, "host_addresses", late)
    lookups = Lookups(clock, ctx.log)
    ends = Ends(lambda _: OneHost(), lookups)  # type: ignore[arg-type, return-value]
    rule(ctx)
    row = task(order={})
    with ctx.db.read() as s:
        first = traffic_guard.read(s, ends, lambda: HERE)
        assert {why for _, _, why in first.forbidden(row)} == {
            "nbd sends the disk in the clear, and where that goes is being looked up for a traffic rule"
        }
        # As long as nothing was found out, what waits has the same wishes.
        assert traffic_guard.read(s, ends, lambda: HERE, first) is first
        answer.set()
        assert lookups.get("host vc-1/host-1", frozenset, wait_s=60)
        second = traffic_guard.read(s, ends, lambda: HERE, first)
        assert second is not first
        found = second.forbidden(row)
    assert [(proxy, mode) for proxy, mode, _ in found] == [("near", "nbd")]
    lookups.close()
