"""Rates from the server's rules to movers of two real workers, and what a slow datastore does to tasks.

The movers take bytes from real token buckets. Nothing here says how fast something must be, only how fast it may.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backup_server.db.states import TaskState
from backup_server.db.tables import Credential, Proxy, Repository, TrafficRule, Vcenter, new_id
from backup_server.scheduler.main import Scheduler
from tests.integration.queue.mover import PIECE_BYTES
from tests.integration.queue.rig import ON_SQLITE, TIMING, Rig, running, utc_now, wait_for
from transports.vsphere.model import DatastoreLatency

pytestmark = [pytest.mark.timeout(240), ON_SQLITE]

RATE = 1_000_000
STORE = "192.0.2.77"
VCENTER = "22222222-2222-2222-2222-222222222222"


class ScriptedVcenter:
    """Its datastores are as slow as the test says."""

    def __init__(self) -> None:
        self.read_ms: float | None = 1.0

    def datastore_latencies(self, names: Collection[str]) -> dict[str, DatastoreLatency]:
        return {name: DatastoreLatency(read_ms=self.read_ms) for name in names}


@pytest.fixture
def vcenter() -> ScriptedVcenter:
    return ScriptedVcenter()


@pytest.fixture
def rig(migrated_url: str, vcenter: ScriptedVcenter) -> Iterator[Rig]:
    """A platform whose repository is elsewhere and whose vCenter is asked often."""
    directory = Path(tempfile.mkdtemp(prefix="vmhaul-r"))
    try:
        with running(Rig(directory, migrated_url)) as made:
            with made.db() as s:
                s.query(Repository).one().location = f"s3://b/x?endpoint=http://{STORE}:9000"
            timing = replace(TIMING, rates_s=0.2, latency_s=0.2)
            made.scheduler = Scheduler(
                made.ctx,
                made.broker.how.celery_url,
                timing=timing,
                vcenter=lambda _: vcenter,  # type: ignore[arg-type, return-value]
            )
            made.scheduler.start()
            yield made
    finally:
        shutil.rmtree(directory)


def start_proxies(rig: Rig, *names: str) -> None:
    """With addresses: whatever the machine of the test has, a rule for any address covers them."""
    for name in names:
        proxy_id, _ = rig.start_proxy(name, slots=1)
        with rig.db() as s:
            row = s.get_one(Proxy, proxy_id)
            row.connections = {"addresses": [f"192.0.2.{len(name)}/24"]}
            row.connections_at = utc_now()


def add_rule(rig: Rig) -> None:
    with rig.db() as s:
        s.add(
            TrafficRule(
                id=new_id(),
                name="wan",
                source=["any"],
                target=[f"{STORE}"],
                rate_bytes_per_s=RATE,
                options={},
                created_at=utc_now(),
            )
        )


def moved(rig: Rig, task_id: str) -> list[tuple[float, int]]:
    """Time and total, as the mover wrote them."""
    path = Path(f"{rig.marks_file}.moved.{task_id}")
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = (line.split() for line in lines)
    return [(float(pair[0]), int(pair[1])) for pair in pairs if len(pair) == 2]


def end(rig: Rig, task_id: str) -> None:
    Path(f"{rig.marks_file}.end.{task_id}").touch()


def rates(rig: Rig, ids: list[str]) -> list[int | None]:
    return [row.rate_bytes_per_s for row in rig.tasks(ids)]


def told(rig: Rig, ids: list[str]) -> list[int | None]:
    """Which rate each mover told last."""
    return [(row.progress or {}).get("rate_bytes_per_s") for row in rig.tasks(ids)]


def most_in(samples: list[tuple[float, int]], since_s: float) -> tuple[float, int]:
    """Seconds and bytes between the first sample after `since_s` and the last."""
    after = [sample for sample in samples if sample[0] >= since_s]
    return after[-1][0] - after[0][0], after[-1][1] - after[0][1]


def test_two_workers_keep_to_one_rule_together_and_share_it(rig: Rig) -> None:
    start_proxies(rig, "px1", "px22")
    add_rule(rig)
    ids = rig.add_tasks(["a moves", "b moves"])
    wait_for(lambda: rates(rig, ids) == [RATE // 2] * 2, "each task's half")
    wait_for(lambda: told(rig, ids) == [RATE // 2] * 2, "both movers to tell that it holds")
    since = max(moved(rig, task_id)[-1][0] for task_id in ids)

    def both_moved() -> bool:
        found = [[one for one in moved(rig, task_id) if one[0] >= since] for task_id in ids]
        return all(len(some) > 1 and some[-1][1] - some[0][1] >= RATE for some in found)

    wait_for(both_moved, "both to move two seconds' worth", 120)
    for task_id in ids:
        took_s, count = most_in(moved(rig, task_id), since)
        assert count <= RATE / 2 * (took_s + 0.5) + 2 * PIECE_BYTES
    assert {row.proxy_name for row in rig.tasks(ids)} == {"px1", "px22"}
    end(rig, ids[0])
    wait_for(lambda: rates(rig, ids[1:]) == [RATE], "what the first does not need any more")
    with rig.db() as s:
        s.query(TrafficRule).delete()
    wait_for(lambda: rates(rig, ids[1:]) == [None], "the end of the limit")
    before = moved(rig, ids[1])[-1][1]
    wait_for(lambda: moved(rig, ids[1])[-1][1] - before > 5 * RATE, "moving without a limit")
    end(rig, ids[1])
    rig.wait_state(ids, TaskState.DONE)


def test_a_task_that_begins_under_a_rule_begins_with_its_part(rig: Rig) -> None:
    start_proxies(rig, "px1")
    add_rule(rig)
    first = rig.add_tasks(["a moves"])
    wait_for(lambda: rates(rig, first) == [RATE], "the whole rate")
    end(rig, first[0])
    rig.wait_state(first, TaskState.DONE)
    second = rig.add_tasks(["b moves"])
    wait_for(lambda: len(moved(rig, second[0])) > 20, "two seconds of moving")
    samples = moved(rig, second[0])
    took_s, count = most_in(samples, 0.0)
    assert count <= RATE * (took_s + 0.5) + 2 * PIECE_BYTES, "from its first byte on"
    end(rig, second[0])
    rig.wait_state(second, TaskState.DONE)


def test_a_slow_datastore_takes_nothing_new_and_its_tasks_are_slowed(
    rig: Rig, vcenter: ScriptedVcenter
) -> None:
    with rig.db() as s:
        secret = Credential(id=new_id(), kind="vcenter", sealed=b"x", created_at=utc_now())
        s.add(secret)
        s.flush()
        s.add(
            Vcenter(
                id=VCENTER,
                name="prod",
                host="vc",
                port=443,
                username="u",
                credential_id=secret.id,
                thumbprint_sha256="",
                instance_uuid="",
                about={},
                inventory_at=None,
                created_at=utc_now(),
            )
        )
    start_proxies(rig, "px1", "px22")
    first = rig.add_tasks(["a moves"], datastore=f"{VCENTER}/ds")
    wait_for(lambda: len(moved(rig, first[0])) > 3, "the first task to move")
    vcenter.read_ms = 55.0
    wait_for(lambda: rates(rig, first) != [None], "the first task to be slowed")
    second = rig.add_tasks(["b moves"], datastore=f"{VCENTER}/ds")

    def why() -> str:
        (row,) = rig.tasks(second)
        assert row.state == TaskState.PENDING.value
        return str((row.decision or {}).get("reason", ""))

    assert "datastore ds is slow: reading takes 55 ms" in wait_for(why, "why the second waits")
    vcenter.read_ms = 2.0
    rig.wait_state(second, TaskState.RUNNING)
    wait_for(lambda: rates(rig, first) == [None], "the end of slowing")
    for task_id in first + second:
        end(rig, task_id)
    rig.wait_state(first + second, TaskState.DONE)
