"""The dispatcher with a real broker and database: modes by the rules, one budget of a host over all proxies."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from backup_server.db.states import Result, TaskState
from backup_server.db.tables import (
    Credential,
    Event,
    OutboxRow,
    Proxy,
    Repository,
    Task,
    Vcenter,
    new_id,
)
from backup_server.scheduler.claims import ClaimIndex
from backup_server.scheduler.dispatcher import Dispatcher
from backup_server.scheduler.needs import Timing
from backup_server.scheduler.outbox import OutboxSender, celery_sender
from backup_server.services import disk_facts, proxy_facts
from backup_server.services.surveys import HOTADD_RANKS, NETWORK_RANK
from proxy_worker.contracts.codec import to_json
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.messages import Connection, ConnectionsReport, DownMessage, RescanOrder
from tests.integration.queue.rig import ON_SQLITE, TIMING, Rig, running, utc_now
from transports.base import TransportMode
from transports.rules import DiskFacts, ProxyVm, StorageSnapshotFacts
from transports.system import uptime_s

SNAPSHOT, SAN, NFS, HOTADD, NBDSSL, NBD = TransportMode
UUID_TEXT = "420a1b2c-3d4e-5f60-7182-93a4b5c6d7e8"
pytestmark = ON_SQLITE


@pytest.fixture
def rig(migrated_url: str) -> Iterator[Rig]:
    directory = Path(tempfile.mkdtemp(prefix="vmhaul-q"))
    try:
        with running(Rig(directory, migrated_url, {"host_nfc_streams": 2})) as made:
            yield made
    finally:
        shutil.rmtree(directory)


class Site:
    """Proxies that are there, a vCenter, and a dispatcher that a test steps."""

    def __init__(
        self, rig: Rig, *, timing: Timing = TIMING, steady_s: Callable[[], float] = uptime_s
    ) -> None:
        self.rig = rig
        with rig.db() as s:
            credential = Credential(id=new_id(), kind="vcenter", sealed=b"x", created_at=utc_now())
            s.add(credential)
            s.flush()
            vcenter = Vcenter(
                id="vc",
                name="vc",
                host="vc.test",
                port=443,
                username="x",
                credential_id=credential.id,
                thumbprint_sha256="",
                instance_uuid="",
                about={},
                created_at=utc_now(),
            )
            s.add(vcenter)
        self._client = rig.broker.client()
        index = ClaimIndex(
            self._client,
            lambda: int(utc_now().timestamp() * 1000),
            spill_ms=600_000,
            network_rank=NETWORK_RANK,
            hotadd_ranks=HOTADD_RANKS,
        )
        self.dispatcher = Dispatcher(
            rig.ctx,
            index,
            leading=lambda: True,
            outbox_wake=threading.Event(),
            timing=timing,
            steady_s=steady_s,
        )

    def close(self) -> None:
        self._client.close()

    def proxy(
        self, name: str, *modes: TransportMode, slots: int = 8, hops: int = 1, **columns: Any
    ) -> str:
        """One that is online for long enough, and reaches datastore ds in all its modes."""
        proxy_id = new_id()
        vms = []
        if HOTADD in modes:
            own = ProxyVm(
                vcenter_id="vc",
                moref=f"vm-{name}",
                name=name,
                datacenter="DC0",
                host_moref="host-1",
                datastores=("ds",),
                home_datastores=("ds",),
                free_slots=9,
            )
            vms.append(to_json(own))
        found = tuple(
            Connection(datastore="vc/ds", mode=mode, readable=True, writable=True, hops=hops)
            for mode in modes
            if mode in (SAN, NFS)
        )
        report = ConnectionsReport(
            proxy_id=ProxyId(proxy_id), vm_uuid=UUID_TEXT, addresses=(), connections=found, missing=()
        )
        with self.rig.db() as s:
            s.add(
                Proxy(
                    id=proxy_id,
                    name=name,
                    local=True,
                    slots=slots,
                    signing_key="ab" * 32,
                    last_seen_at=utc_now(),
                    facts={"slots": slots, "modes": [mode.value for mode in modes], "vms": vms},
                    connections=to_json(report),
                    connections_at=utc_now(),
                    created_at=utc_now(),
                    **columns,
                )
            )
        return proxy_id

    def tasks(self, count: int, *, facts: dict[str, Any] | None = None, **disk: Any) -> list[str]:
        values = {
            "vcenter_id": "vc",
            "vm_moref": "vm-9",
            "vm_name": "db01",
            "datacenter": "DC0",
            "datastore": "ds",
            "datastore_kind": "VMFS",
            "path": "[ds] db01/db01.vmdk",
            "capacity_bytes": 1 << 30,
            "controller": "SCSI",
            "host_moref": "host-1",
            **disk,
        }
        known = DiskFacts(**values)
        return self.rig.add_tasks(
            [f"backup db01 / disk {number}" for number in range(count)],
            vcenter_id="vc",
            host_moref=known.host_moref,
            facts={**disk_facts.stored(known), **(facts or {})},
        )

    def settle(self) -> None:
        """Until nothing more is handed out, and what waits is explained."""
        self.alive()
        while self.dispatcher.step():
            self.alive()
        self.dispatcher._audit(utc_now())

    def alive(self) -> None:
        with self.rig.db() as s:
            s.execute(sa.update(Proxy).values(last_seen_at=utc_now()))

    def end(self, task_id: str) -> None:
        row = self.rig.task(task_id)
        with self.rig.db() as s:
            s.execute(
                sa.update(Task)
                .where(Task.id == task_id)
                .values(state=TaskState.DONE.value, result=Result.SUCCESS.value)
            )
        assert self.dispatcher._index.release(task_id, row.attempt)

    def modes(self, ids: list[str]) -> list[str | None]:
        return [
            row.mode if row.state == TaskState.RUNNING.value else None for row in self.rig.tasks(ids)
        ]


@pytest.fixture
def site(rig: Rig) -> Iterator[Site]:
    made = Site(rig)
    yield made
    made.close()


def order(site: Site, task_id: str) -> dict[str, Any]:
    with site.rig.db.read() as s:
        return dict(s.scalars(sa.select(OutboxRow).where(OutboxRow.task_id == task_id)).one().body)


def test_the_best_mode_and_where_it_may_go_on(site: Site) -> None:
    site.proxy("net", NBDSSL, NBD)
    site.proxy("vm", HOTADD, NBDSSL)
    [task_id] = site.tasks(1)
    site.settle()
    row = site.rig.task(task_id)
    assert (row.proxy_name, row.mode) == ("vm", "hotadd")
    assert order(site, task_id)["fallback_modes"] == ["nbdssl"]
    assert row.decision is not None
    candidates = {(one["name"], one["mode"]): one for one in row.decision["candidates"]}
    assert candidates["vm", "hotadd"]["accepted"]
    assert "does not offer hotadd" in candidates["net", "hotadd"]["reason"]
    refused = {one["mode"] for one in row.decision["modes"]}
    assert {"direct-nfs", "nbd", "storage-snapshot"} <= refused


def test_a_worker_of_an_earlier_release_is_told_of_no_other_mode(site: Site) -> None:
    site.proxy("old", HOTADD, NBDSSL)
    with site.rig.db() as s:
        s.execute(sa.update(Proxy).values(connections={}, connections_at=None))
    [task_id] = site.tasks(1)
    site.settle()
    assert site.modes([task_id]) == ["hotadd"]
    assert "fallback_modes" not in order(site, task_id)


def test_one_budget_of_a_host_over_all_proxies_for_network_modes_only(site: Site) -> None:
    site.proxy("a", NBDSSL)
    site.proxy("b", NBDSSL)
    ids = site.tasks(4)
    elsewhere = site.tasks(1, host_moref="host-2")
    site.settle()
    assert site.modes(ids).count("nbdssl") == 2
    assert site.modes(elsewhere) == ["nbdssl"]
    waiting = [row for row in site.rig.tasks(ids) if row.state == TaskState.PENDING.value]
    assert "the NFC service of host host-1 has all 2 tasks" in str(waiting[0].decision)
    site.end(next(i for i, mode in zip(ids, site.modes(ids), strict=True) if mode))
    site.settle()
    assert site.modes(ids).count("nbdssl") == 2
    site.proxy("vm", HOTADD, slots=1)
    site.settle()
    assert sorted(map(str, site.modes(ids))) == ["None", "hotadd", "nbdssl", "nbdssl"]


def test_the_budget_is_known_again_after_the_index_was_lost(site: Site) -> None:
    site.proxy("a", NBDSSL)
    ids = site.tasks(3)
    site.settle()
    site.dispatcher.forget_index()
    site.settle()
    assert site.modes(ids).count("nbdssl") == 2


def test_what_failed_on_a_proxy_is_not_chosen_there_again(site: Site) -> None:
    first = site.proxy("first", HOTADD, NBDSSL)
    site.proxy("second", HOTADD, NBDSSL, slots=1)
    left = {"left": [{"proxy": first, "mode": "hotadd", "reason": "no slot"}]}
    ids = site.tasks(2, facts=left)
    site.settle()
    found = {(row.proxy_name, row.mode) for row in site.rig.tasks(ids)}
    assert found == {("second", "hotadd"), ("first", "nbdssl")}


def test_a_task_for_which_no_way_is_left_fails_at_once(site: Site) -> None:
    san = site.proxy("san", SAN, NBDSSL)
    site.proxy("net", NBDSSL)
    facts = {
        "left": [{"proxy": san, "mode": "direct-san", "reason": "LUN lost"}],
        "failover_to_network": False,
    }
    [task_id] = site.tasks(1, facts=facts)
    site.settle()
    row = site.rig.task(task_id)
    assert (row.state, row.result) == (TaskState.DONE.value, Result.FAILED.value)
    assert "no way to this disk is left" in row.reason


def test_a_task_waits_for_the_proxy_that_is_upgraded(site: Site) -> None:
    """It is disabled for that while; its other modes are ways that are left."""
    proxy = site.proxy("only", SAN, NBDSSL, enabled=False)
    left = {"left": [{"proxy": proxy, "mode": "direct-san", "reason": "LUN lost"}]}
    [task_id] = site.tasks(1, facts=left)
    site.settle()
    assert site.rig.task(task_id).state == TaskState.PENDING.value
    with site.rig.db() as s:
        s.get_one(Proxy, proxy).enabled = True
    site.settle()
    assert site.modes([task_id]) == ["nbdssl"]


def test_a_task_whose_proxies_were_all_removed_fails_at_once(site: Site) -> None:
    """A storage snapshot is shown to some proxies only; another attempt is planned anew, for those that are there."""
    there = site.proxy("net", SAN, NBDSSL)
    bound = StorageSnapshotFacts(
        system="array", proxies=("removed",), read_by=SAN, vm_snapshot_gone=True
    )
    [lost] = site.tasks(1, storage_snapshot=bound)
    [waits] = site.tasks(1, storage_snapshot=replace(bound, proxies=("removed", there)))
    with site.rig.db() as s:
        modes = [TransportMode.STORAGE_SNAPSHOT.value]
        s.execute(sa.update(Task).where(Task.id.in_([lost, waits])).values(allowed_modes=modes))
    site.settle()
    assert site.rig.task(lost).result == Result.FAILED.value
    assert site.rig.task(waits).result is None


def test_a_disk_that_no_mode_admits_fails_at_once(site: Site) -> None:
    site.proxy("all", *TransportMode)
    gone = StorageSnapshotFacts(vm_snapshot_gone=True)
    [task_id] = site.tasks(1, storage_snapshot=gone)
    site.settle()
    row = site.rig.task(task_id)
    assert row.result == Result.FAILED.value
    assert "only the storage snapshot holds its state" in row.reason
    assert site.rig.ctx.wake_engine.is_set()


def test_direct_nfs_waits_for_the_nearest(site: Site) -> None:
    site.proxy("near", NFS, NBDSSL, slots=1, hops=0)
    site.proxy("far", NFS, HOTADD, NBDSSL, hops=3)
    ids = site.tasks(2, datastore_kind="NFS41")
    site.settle()
    assert sorted(map(str, site.modes(ids))) == ["None", "direct-nfs"]
    waiting = next(row for row in site.rig.tasks(ids) if row.state == TaskState.PENDING.value)
    assert waiting.decision is not None
    assert "near: all 1 task slots are taken" in waiting.decision["reason"]
    site.end(next(row.id for row in site.rig.tasks(ids) if row.state == TaskState.RUNNING.value))
    site.settle()
    assert site.rig.task(waiting.id).proxy_name == "near"


def warnings(site: Site, session_id: str) -> list[str]:
    with site.rig.db.read() as s:
        where = (Event.session_id == session_id, Event.level == "warning")
        return list(s.scalars(sa.select(Event.text).where(*where).order_by(Event.id)))


def test_sessions_are_told_once_for_each_reason_that_nobody_can_take_their_disks(site: Site) -> None:
    px = site.proxy("px", HOTADD)
    own = {"vm_moref": "vm-px"}
    first = site.rig.task(site.tasks(1, **own)[0]).session_id
    second = site.rig.task(site.tasks(2, **own)[0]).session_id
    for _ in range(3):
        site.settle()
    reason = "disks wait, and no proxy there is can take them: px: "
    for session_id in (first, second):
        [said] = warnings(site, session_id)
        assert said.startswith(reason + "px is this proxy")
    third = site.rig.task(site.tasks(1, **own)[0]).session_id
    with site.rig.db() as s:
        s.get_one(Proxy, px).enabled = False
    for _ in range(3):
        site.settle()
    assert [len(warnings(site, one)) for one in (first, second, third)] == [2, 2, 1]
    assert warnings(site, third) == [reason + "the proxy is disabled"]
    site.proxy("net", NBDSSL)
    site.settle()
    assert len(warnings(site, first)) == 2


def test_a_proxy_without_slots_is_nobody_who_could_take_a_disk(site: Site) -> None:
    site.proxy("px", NBDSSL, slots=0)
    [task_id] = site.tasks(1)
    site.settle()
    [said] = warnings(site, site.rig.task(task_id).session_id)
    assert "px: the proxy has no task slots" in said


def test_proxies_near_the_repository_and_jobs_that_name_others(site: Site) -> None:
    near = {"repositories": [site.rig.repository_id]}
    here = site.proxy("here", NBDSSL, slots=1, settings=near)
    far = site.proxy("far", HOTADD, NBDSSL)
    ids = site.tasks(2)
    site.settle()
    assert sorted(map(str, site.modes(ids))) == ["None", "nbdssl"]
    [running_one] = [row for row in site.rig.tasks(ids) if row.state == TaskState.RUNNING.value]
    assert running_one.proxy_id == here
    session = site.rig.add_session()
    named = site.rig.add_tasks(["a", "b"], session, allowed_proxies=[far])
    site.settle()
    assert {row.proxy_id for row in site.rig.tasks(named)} == {far}
    [said] = warnings(site, session)
    assert said == "the job names only proxies that are not near its repository; near it: here"
    # What waits follows when an administrator thinks otherwise.
    with site.rig.db() as s:
        s.get_one(Proxy, here).settings = {}
    site.settle()
    assert "hotadd" in site.modes(ids)


def test_a_disk_that_goes_on_by_network_counts_in_its_hosts_budget(site: Site) -> None:
    site.proxy("vm", HOTADD, NBDSSL, slots=1)
    [first] = site.tasks(1)
    site.settle()
    assert site.modes([first]) == ["hotadd"]
    with site.rig.db() as s:
        s.get_one(Task, first).progress = {"mode": "nbdssl"}
    site.proxy("net", NBDSSL)
    others = site.tasks(3)
    site.dispatcher._audit(utc_now())
    site.settle()
    assert site.modes([first]) == ["hotadd"]
    assert site.modes(others).count("nbdssl") == 1


def test_many_disks_are_few_places(site: Site) -> None:
    site.proxy("off", NBDSSL, enabled=False)
    for number in range(40):
        site.tasks(
            2, vm_moref=f"vm-{number}", host_moref=f"host-{number % 8}", capacity_bytes=number << 20
        )
    site.settle()
    with site.rig.broker.client() as client:
        assert len(list(client.scan_iter("vmhaul:heads:*"))) == 1
        assert len(list(client.scan_iter("vmhaul:pend:*"))) == 8


def test_a_rescan_goes_to_its_proxy(site: Site) -> None:
    proxy_id = site.proxy("px", NBDSSL)
    with site.rig.db() as s:
        s.add(
            OutboxRow(
                kind="rescan",
                proxy_id=proxy_id,
                task_id=None,
                attempt=None,
                body=to_json(RescanOrder(proxy_id=ProxyId(proxy_id))),
                created_at=utc_now(),
            )
        )
    down = Down()
    app = celery_sender(site.rig.broker.how.celery_url)
    sender: Any = OutboxSender(site.rig.ctx, app, None, down, lambda: True)  # type: ignore[arg-type]
    assert not sender.step()
    assert down.sent == [(proxy_id, [RescanOrder(proxy_id=ProxyId(proxy_id))])]
    with site.rig.db.read() as s:
        assert s.scalars(sa.select(OutboxRow)).all() == []
    app.close()


class Down:
    """A down link that only notes."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, list[DownMessage]]] = []

    def send_all(self, messages: dict[ProxyId, list[DownMessage]]) -> None:
        for proxy_id, its_own in messages.items():
            self.send(proxy_id, its_own)

    def send(self, proxy_id: str, messages: list[DownMessage]) -> None:
        self.sent.append((proxy_id, list(messages)))


def test_a_proxy_that_opens_no_directories_gets_tasks_of_buckets_alone(site: Site) -> None:
    windows = site.proxy("windows", NBDSSL)
    with site.rig.db() as s:
        row = s.get_one(Proxy, windows)
        row.facts = {**row.facts, proxy_facts.NO_DIRECTORIES: "it runs Windows"}
        s.execute(sa.update(Repository).values(location="/srv/backups"))
    ids = site.tasks(2)
    site.settle()
    for row in site.rig.tasks(ids):
        assert row.state == TaskState.PENDING.value
        assert row.decision is not None
        assert row.decision["reason"] == "windows: the proxy opens no directories: it runs Windows"
    with site.rig.db() as s:
        s.execute(sa.update(Repository).values(location="s3://bucket/place"))
    site.settle()
    assert site.modes(ids) == ["nbdssl", "nbdssl"]
