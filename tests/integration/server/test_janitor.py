"""The janitor cleans what is ours and nobody's, and nothing else."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from backup_server.db.tables import Event, Intent, RestorePointRow
from backup_server.services import jobs, restores, sessions
from backup_server.services.janitor import HELPER_AFTER_TRIES
from tests.fakes.server import Rig
from tests.fakes.vsphere import FakeVm
from tests.integration.queue.rig import wait_for
from transports.errors import TransientTransportError


def left_behind(rig: Rig, name: str = "db01") -> FakeVm:
    """A VM whose session is over and whose snapshot could not be removed."""
    vm = rig.vcenter.add_vm(name, disks=1)
    rig.job()
    rig.vcenter.fail("remove_snapshot", *[TransientTransportError("locked")] * 3)
    rig.run()
    assert len(vm.snapshots) == 1
    return vm


def description(rig: Rig, intent: str, server: str | None = None) -> str:
    return json.dumps({"vmhaul": server or rig.ctx.server_id, "intent": intent, "session": "x"})


def test_removes_what_a_session_left(rig: Rig) -> None:
    vm = left_behind(rig)
    rig.janitor.run_once()
    assert vm.snapshots == []
    [intent] = rig.rows(Intent)
    assert (intent.state, intent.problem) == ("done", "")
    assert intent.closed_at is not None
    assert rig.rows(Event, name="janitor.cleaned")


def test_foreign_snapshots_survive_every_path(rig: Rig) -> None:
    vm = left_behind(rig)
    other = rig.vcenter.add_vm("other", disks=1)
    [intent] = rig.open_intents()
    ours = rig.ctx.server_id
    foreign = [
        rig.vcenter.snapshot_by_hand(vm, "before the upgrade"),
        # somebody took over our name, another server's mark, broken marks, a renamed one of ours
        rig.vcenter.snapshot_by_hand(vm, f"vmhaul-backup {intent.id}", "made by hand"),
        rig.vcenter.snapshot_by_hand(
            vm, f"vmhaul-backup {intent.id}", description(rig, intent.id, "other")
        ),
        rig.vcenter.snapshot_by_hand(vm, "vmhaul-backup x", description(rig, "y")),
        rig.vcenter.snapshot_by_hand(vm, "keep me", description(rig, intent.id)),
        rig.vcenter.snapshot_by_hand(vm, "vmhaul-backup z", json.dumps(["vmhaul", ours])),
        rig.vcenter.snapshot_by_hand(vm, "vmhaul-backup 7", json.dumps({"vmhaul": ours, "intent": 7})),
    ]
    foreign_other = rig.vcenter.snapshot_by_hand(other, "nightly")
    rig.janitor.run_once()
    rig.janitor.sweep()
    assert vm.snapshots == foreign
    assert other.snapshots == [foreign_other]
    assert rig.open_intents() == []


def test_running_sessions_keep_their_snapshots(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    session = jobs.run(rig.ctx, "job1")
    for _ in range(3):
        rig.engine.run_once()
    assert len(rig.vcenter.all_snapshots()) == 1
    rig.janitor.run_once()
    rig.janitor.sweep()
    assert len(rig.vcenter.all_snapshots()) == 1
    assert rig.drive(session["id"])["result"] == "success"


def test_sweep_removes_ours_without_an_open_intent(rig: Rig) -> None:
    vm = rig.vcenter.add_vm("db01", disks=1)
    rig.vcenter.snapshot_by_hand(vm, "vmhaul-backup unknown", description(rig, "unknown"))
    rig.janitor.run_once()
    assert vm.snapshots == []


def test_waits_double_and_the_reason_is_kept(rig: Rig) -> None:
    left_behind(rig)
    waits = []
    rig.vcenter.fail("remove_snapshot", *[TransientTransportError("still locked")] * 50)
    for tries in range(1, 12):
        rig.janitor.run_once()
        [intent] = rig.open_intents()
        assert intent.tries == tries
        assert intent.problem == "still locked"
        assert intent.next_try_at is not None
        waits.append((intent.next_try_at - rig.clock.now).total_seconds())
        rig.janitor.run_once()  # not due: nothing happens
        assert rig.open_intents()[0].tries == tries
        rig.clock.now = intent.next_try_at + timedelta(seconds=1)
    assert waits[:3] == [60, 120, 240]
    assert max(waits) == rig.settings.janitor_wait_max_s


def test_a_clock_that_was_ahead_keeps_no_intent_waiting(rig: Rig) -> None:
    left_behind(rig)
    rig.vcenter.fail("remove_snapshot", TransientTransportError("locked"))
    right = rig.clock.now
    rig.clock.advance(3 * 3600)
    rig.janitor.run_once()
    assert len(rig.open_intents()) == 1
    rig.janitor.run_once()
    assert len(rig.open_intents()) == 1, "its pause was not kept"
    rig.clock.now = right
    rig.janitor.run_once()
    assert rig.open_intents() == []


def test_waits_have_an_end_after_a_year_of_trying(rig: Rig) -> None:
    left_behind(rig)
    [intent] = rig.open_intents()
    with rig.ctx.db() as s:
        s.get_one(Intent, intent.id).tries = 2000
    rig.vcenter.fail("snapshots", TransientTransportError("still locked"))
    rig.janitor.clean_due()
    [intent] = rig.open_intents()
    assert (intent.tries, intent.problem) == (2001, "still locked")
    assert intent.next_try_at is not None
    assert (intent.next_try_at - rig.clock.now).total_seconds() == rig.settings.janitor_wait_max_s


def test_one_that_nobody_foresaw_keeps_nobody_waiting(rig: Rig) -> None:
    first = left_behind(rig)
    later = rig.vcenter.add_vm("db02", disks=1)
    rig.vcenter.fail("remove_snapshot", *[TransientTransportError("locked")] * 3)
    rig.job("job2", selection={"include": [{"type": "vm", "name": "db02"}]})
    rig.run("job2")
    assert len(first.snapshots) == len(later.snapshots) == 1
    rig.vcenter.fail("remove_snapshot", RuntimeError("what is this"))
    rig.janitor.clean_due()
    [intent] = rig.open_intents()
    assert intent.vm_name == "db01"
    assert intent.problem == "unexpected RuntimeError: what is this"
    assert later.snapshots == []


def test_ladder_ends_with_a_helper_snapshot_that_goes_too(rig: Rig) -> None:
    vm = left_behind(rig)
    rig.vcenter.fail("remove_snapshot", *[TransientTransportError("locked")] * HELPER_AFTER_TRIES)
    made = rig.vcenter.calls.count("create_snapshot")
    for _ in range(HELPER_AFTER_TRIES + 1):
        rig.janitor.run_once()
        rig.clock.advance(86_400)
    assert rig.vcenter.calls.count("create_snapshot") == made + 1
    assert vm.snapshots == []
    assert rig.open_intents() == []


def test_no_helper_snapshot_above_foreign_ones(rig: Rig) -> None:
    vm = left_behind(rig)
    foreign = rig.vcenter.snapshot_by_hand(vm, "by hand")
    rig.vcenter.fail("remove_snapshot", *[TransientTransportError("locked")] * HELPER_AFTER_TRIES)
    made = rig.vcenter.calls.count("create_snapshot")
    for _ in range(HELPER_AFTER_TRIES + 1):
        rig.janitor.run_once()
        rig.clock.advance(86_400)
    assert rig.vcenter.calls.count("create_snapshot") == made
    assert vm.snapshots == [foreign]


def test_consolidation_that_is_still_needed_keeps_the_intent(rig: Rig) -> None:
    vm = left_behind(rig)
    vm.consolidation_needed = True
    rig.vcenter.fail("consolidate", TransientTransportError("disk is attached to a proxy"))
    rig.janitor.run_once()
    [intent] = rig.open_intents()
    assert "attached to a proxy" in intent.problem
    rig.clock.advance(86_400)
    rig.janitor.run_once()
    assert rig.open_intents() == []
    assert not vm.consolidation_needed


def test_vm_that_is_gone_closes_the_intent(rig: Rig) -> None:
    vm = left_behind(rig)
    del rig.vcenter.vms[vm.moref]
    rig.janitor.run_once()
    assert rig.open_intents() == []


def test_lost_vcenter_is_a_problem_not_an_end(rig: Rig) -> None:
    left_behind(rig)
    rig.vcenter.fail("snapshots", TransientTransportError("vc1 does not answer"))
    rig.janitor.run_once()
    assert rig.open_intents()[0].problem == "vc1 does not answer"
    rig.clock.advance(86_400)
    rig.janitor.run_once()
    assert rig.open_intents() == []


def test_half_restored_vm_is_destroyed_and_others_are_not(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.run()
    session = restores.restore_vm(rig.ctx, {"restore_point": "db01@latest", "name": "copy"})
    rig.vcenter.fail("finish_vm", *[TransientTransportError("no")] * 20)
    rig.vcenter.fail("destroy_marked_vm", TransientTransportError("no"))
    shown = rig.drive(session["id"])
    assert shown["result"] == "failed"
    assert "copy" in {vm.name for vm in rig.vcenter.vms.values()}
    stranger = rig.vcenter.add_vm("stranger")
    stranger.mark = "vmhaul:somebody-else:1"
    rig.janitor.run_once()
    rig.clock.advance(86_400)
    rig.janitor.run_once()
    assert {vm.name for vm in rig.vcenter.vms.values()} == {"db01", "stranger"}
    assert rig.open_intents() == []


def test_unfinished_deletion_is_finished(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.run()
    with rig.ctx.db() as s:
        s.get_one(RestorePointRow, rig.points()[0].id).deleting = True
    rig.repositories.fail("forget", "transient", "busy")
    rig.janitor.run_once()
    assert len(rig.points()) == 1
    rig.janitor.run_once()
    assert rig.points() == []
    assert rig.repository.points == {}


def test_starts_and_stops(rig: Rig) -> None:
    vm = left_behind(rig)
    rig.janitor.start()
    rig.engine.start()
    for _ in range(200):
        if not vm.snapshots:
            break
        rig.ctx.stopping.wait(0.05)
    rig.janitor.stop()
    assert vm.snapshots == []
    assert sessions.list_all(rig.ctx)["items"]


def test_a_clock_that_goes_back_does_not_make_it_sleep(
    tmp_path: Path, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, migrated_url, janitor_interval_s=0.05)
    visits: list[datetime] = []
    monkeypatch.setattr(rig.janitor, "run_once", lambda: visits.append(rig.clock.now))
    rig.clock.advance(3600)
    rig.janitor.start()
    try:
        wait_for(lambda: visits, "the first visit")
        rig.clock.advance(-3600)
        before = rig.clock.now
        wait_for(lambda: visits[-1] == before, "a visit after the clock went back")
    finally:
        rig.janitor.stop()
        rig.close()
