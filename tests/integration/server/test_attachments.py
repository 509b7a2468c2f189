"""Disks that are attached to proxies' VMs: answered, refused with reasons, gathered, and never forgotten."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest

from backup_server.db.tables import Event, Intent, Task
from backup_server.errors import ConflictError, ForbiddenError, UnavailableError
from backup_server.services import attachments, jobs, vm_snapshots
from backup_server.services.attachments import LATE_FOR
from tests.fakes.hotadd import (
    PROXY,
    UUID,
    add_proxy,
    end_attempt,
    foreign,
    hand_out,
    present,
    withdraw,
)
from tests.fakes.server import Rig
from tests.fakes.vsphere import FakeVm
from transports.base import TransportMode
from transports.errors import PermanentTransportError, TransientTransportError
from transports.vsphere.model import DiskToAttach


@pytest.fixture
def proxy(rig: Rig) -> FakeVm:
    return add_proxy(rig)


def tasks(rig: Rig, *names: str, disks: int = 1) -> list[Task]:
    """Tasks of a backup that is under way, waiting for a proxy."""
    for name in names or ("db01",):
        rig.vcenter.add_vm(name, disks=disks)
    rig.job(selection={"include": [{"type": "vm", "name": name} for name in names or ("db01",)]})
    jobs.run(rig.ctx, "job1")
    for _ in range(4 + 2 * len(names)):
        rig.engine.run_once()
    found = sorted(rig.rows(Task), key=lambda task: task.position)
    assert len(found) == disks * max(1, len(names))
    return found


def test_a_disk_is_attached_by_intent_and_taken_away(rig: Rig, proxy: FakeVm) -> None:
    [task] = tasks(rig)
    attempt = hand_out(rig, task)
    presented = present(rig, task, attempt)
    [(place, attached)] = foreign(proxy).items()
    assert attached == DiskToAttach(path="[ds1] db01/db01_0.vmdk", write=False)
    assert presented.mode is TransportMode.HOTADD
    assert (presented.controller_bus, presented.unit) == place
    assert presented.disk.path == attached.path
    assert presented.disk_uuid == next(
        vm.disks[0].uuid for vm in rig.vcenter.vms.values() if vm.name == "db01"
    )
    [intent] = rig.rows(Intent, kind="hot-added-disk")
    assert (intent.state, intent.task_id, intent.vm_moref) == ("open", task.id, proxy.moref)
    assert intent.details == {
        "proxy_id": PROXY,
        "attempt": attempt,
        "path": attached.path,
        "write": False,
        "disk_vm_moref": presented.disk.vm_moref,
        "disk_vm_name": "db01",
        "places": [list(place)],
        "settled": True,
    }
    assert present(rig, task, attempt) == presented
    assert len(rig.rows(Intent, kind="hot-added-disk")) == 1
    withdraw(rig, task, attempt)
    withdraw(rig, task, attempt)
    assert foreign(proxy) == {}
    [intent] = rig.rows(Intent, kind="hot-added-disk")
    assert intent.state == "done"


def test_the_intent_comes_before_the_change(rig: Rig, proxy: FakeVm) -> None:
    [task] = tasks(rig)
    attempt = hand_out(rig, task)
    seen: list[int] = []
    rig.vcenter.after["attach_disks"] = lambda: seen.append(
        len(rig.rows(Intent, kind="hot-added-disk", state="open"))
    )
    present(rig, task, attempt)
    assert seen == [1]


def no_uuid(rig: Rig) -> None:
    add_proxy(rig, uuid="")


def no_such_uuid(rig: Rig) -> None:
    add_proxy(rig, uuid="../../proxy")


def unknown(rig: Rig) -> None:
    add_proxy(rig).bios_uuid = "another"


def twins(rig: Rig) -> None:
    add_proxy(rig)
    rig.vcenter.add_vm("clone", bios_uuid=UUID)


def itself(rig: Rig) -> None:
    vm = add_proxy(rig)
    vm.bios_uuid = ""
    next(one for one in rig.vcenter.vms.values() if one.name == "db01").bios_uuid = UUID


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (no_uuid, "proxy proxy-1 shows no SMBIOS UUID"),
        (no_such_uuid, "proxy proxy-1 shows no SMBIOS UUID"),
        (unknown, f"vCenter has no VM with the SMBIOS UUID {UUID} of proxy proxy-1"),
        (twins, f"2 VMs have the SMBIOS UUID {UUID} .*give the clone a UUID of its own"),
        (itself, "proxy proxy-1 runs in VM db01 itself"),
    ],
)
def test_a_proxy_that_cannot_have_the_disk_is_told_why(
    rig: Rig, make: Callable[[Rig], None], reason: str
) -> None:
    [task] = tasks(rig)
    make(rig)
    attempt = hand_out(rig, task)
    with pytest.raises(ConflictError, match=reason):
        present(rig, task, attempt)
    assert rig.rows(Intent, kind="hot-added-disk") == []
    assert "attach_disks" not in rig.vcenter.calls


def test_who_does_not_hold_the_attempt_gets_nothing(rig: Rig, proxy: FakeVm) -> None:
    [task] = tasks(rig)
    attempt = hand_out(rig, task)
    for other in (attempt - 1, attempt + 1):
        with pytest.raises(ForbiddenError):
            present(rig, task, other)
    with pytest.raises(ForbiddenError):
        present(rig, task, attempt, "another-proxy")
    end_attempt(rig, task.id)
    with pytest.raises(ForbiddenError):
        present(rig, task, attempt)
    assert foreign(proxy) == {}


def test_nothing_is_attached_for_an_attempt_that_ended_meanwhile(rig: Rig, proxy: FakeVm) -> None:
    """Between the intent and the VM's turn."""
    [task] = tasks(rig)
    attempt = hand_out(rig, task)
    with rig.ctx.attaching.alone((task.vcenter_id, proxy.moref)), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(present, rig, task, attempt)
        until(lambda: len(rig.rows(Intent, kind="hot-added-disk")) == 1)
        until(lambda: waiting(rig, task, proxy) == 1)
        end_attempt(rig, task.id)
        release_turn(rig, task, proxy, asked)
    with pytest.raises(ForbiddenError, match="is over"):
        asked.result()
    assert foreign(proxy) == {}
    rig.janitor.run_once()
    assert rig.rows(Intent, kind="hot-added-disk", state="open") == []


def until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(6000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came")


def waiting(rig: Rig, task: Task, proxy: FakeVm) -> int:
    return len(rig.ctx.attaching._lane((task.vcenter_id, proxy.moref)).waiting)


def release_turn(rig: Rig, task: Task, proxy: FakeVm, asked: Future[object]) -> None:
    """Let those who wait go on, from inside of alone()."""
    lane = rig.ctx.attaching._lane((task.vcenter_id, proxy.moref))
    lane.turn.release()
    until(asked.done)
    lane.turn.acquire()


def test_a_wrong_kind_of_access_is_refused(rig: Rig, proxy: FakeVm) -> None:
    from backup_server.services import presentations
    from proxy_worker.contracts.messages import PresentRequest

    [task] = tasks(rig)
    attempt = hand_out(rig, task)
    question = PresentRequest(
        task_id=task.id,  # type: ignore[arg-type]
        attempt=attempt,  # type: ignore[arg-type]
        mode=TransportMode.HOTADD,
        write=True,
    )
    with pytest.raises(ForbiddenError, match="no disk to write to"):
        presentations.present(rig.ctx, PROXY, question)


def test_a_mode_that_placement_did_not_choose_is_refused(rig: Rig, proxy: FakeVm) -> None:
    [task] = tasks(rig)
    attempt = hand_out(rig, task)
    with rig.ctx.db() as s:
        s.get_one(Task, task.id).mode = TransportMode.NBDSSL.value
    with pytest.raises(ConflictError, match="not given to the proxy by hotadd; placement chose nbdssl"):
        present(rig, task, attempt)
    assert foreign(proxy) == {}
    assert rig.rows(Intent, kind="hot-added-disk") == []
    with rig.ctx.db() as s:
        row = s.get_one(Task, task.id)
        row.mode, row.decision = TransportMode.DIRECT_SAN.value, {"fallbacks": ["hotadd", "nbdssl"]}
    present(rig, task, attempt)
    assert len(foreign(proxy)) == 1


def test_what_may_pass_is_tried_again_under_the_same_intent(rig: Rig, proxy: FakeVm) -> None:
    [task] = tasks(rig)
    attempt = hand_out(rig, task)
    rig.vcenter.fail("attach_disks", TransientTransportError("another task runs on it"))
    with pytest.raises(UnavailableError, match="another task runs"):
        present(rig, task, attempt)
    [intent] = rig.rows(Intent, kind="hot-added-disk", state="open")
    present(rig, task, attempt)
    assert [one.id for one in rig.rows(Intent, kind="hot-added-disk")] == [intent.id]
    assert len(foreign(proxy)) == 1


def test_what_will_not_pass_leaves_nothing(rig: Rig, proxy: FakeVm) -> None:
    [task] = tasks(rig)
    attempt = hand_out(rig, task)
    rig.vcenter.fail("attach_disks", PermanentTransportError("the disk is on an IDE controller"))
    with pytest.raises(ConflictError, match="IDE"):
        present(rig, task, attempt)
    assert rig.rows(Intent, kind="hot-added-disk", state="open") == []


def test_what_comes_during_a_change_goes_together_in_the_next(rig: Rig, proxy: FakeVm) -> None:
    first, *others = tasks(rig, disks=4)
    attempts = {task.id: hand_out(rig, task) for task in (first, *others)}
    under_way, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        under_way.set()
        assert go_on.wait(60)

    rig.vcenter.after["attach_disks"] = hold
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(present, rig, first, attempts[first.id])]
        assert under_way.wait(60)
        asked += [pool.submit(present, rig, task, attempts[task.id]) for task in others]
        until(lambda: waiting(rig, first, proxy) == 3)
        go_on.set()
        answers = [one.result() for one in asked]
    assert rig.vcenter.calls.count("attach_disks") == 2
    assert len({(one.controller_bus, one.unit) for one in answers}) == 4
    assert len(foreign(proxy)) == 4


def test_one_bad_disk_does_not_keep_the_others(rig: Rig, proxy: FakeVm) -> None:
    good, bad, _ = tasks(rig, disks=3)
    attempts = {task.id: hand_out(rig, task) for task in (good, bad)}
    intents = []
    for task in (good, bad):
        present(rig, task, attempts[task.id])
        [intent] = [one for one in rig.rows(Intent, state="open") if one.task_id == task.id]
        intents.append(intent)
        withdraw(rig, task, attempts[task.id])
    rig.vcenter.fail("attach_disks", PermanentTransportError("both"), PermanentTransportError("bad"))
    client = rig.ctx.vcenters.get(good.vcenter_id or "")
    changes = [
        attachments.Change(intent_id=one.id, disk=attachments._of(one), attach=True)
        for one in reversed(intents)
    ]
    refused, attached = attachments._attach_all(rig.ctx, client, proxy.moref, changes)
    assert str(refused) == "bad"
    assert getattr(attached, "path", "") == good.order["disk"]["path"]
    client.detach_disks(proxy.moref, [one.disk for one in changes])


def test_the_janitor_takes_away_what_a_dead_proxy_left(rig: Rig, proxy: FakeVm) -> None:
    [task] = tasks(rig)
    attempt = hand_out(rig, task)
    present(rig, task, attempt)
    rig.janitor.run_once()
    assert len(foreign(proxy)) == 1, "the attempt goes on"
    end_attempt(rig, task.id)
    rig.janitor.run_once()
    assert foreign(proxy) == {}
    assert (0, 9) in proxy.attached
    assert any(
        "nothing is left of the attached disk" in event.text
        for event in rig.rows(Event, name="janitor.cleaned")
    )
    [intent] = rig.rows(Intent, kind="snapshot")
    assert intent.state == "open", "the VM's snapshot is still needed"


def test_another_attempt_elsewhere_first_takes_the_disk_away_here(rig: Rig, proxy: FakeVm) -> None:
    other = add_proxy(rig, "proxy-2", "42209f1e-0c2d-4b3a-8f10-000000000002")
    [task] = tasks(rig)
    present(rig, task, hand_out(rig, task))
    end_attempt(rig, task.id)
    [task] = rig.rows(Task)
    rig.vcenter.fail("detach_disks", TransientTransportError("the VM is being reconfigured"))
    attempt = hand_out(rig, task, "proxy-2")
    with pytest.raises(UnavailableError, match="being reconfigured"):
        present(rig, task, attempt, "proxy-2")
    assert foreign(other) == {}
    present(rig, task, attempt, "proxy-2")
    assert foreign(proxy) == {}
    assert len(foreign(other)) == 1


def test_what_a_proxy_left_goes_before_its_next_disk_comes(rig: Rig, proxy: FakeVm) -> None:
    left, following = tasks(rig, disks=2)
    present(rig, left, hand_out(rig, left))
    end_attempt(rig, left.id)
    present(rig, following, hand_out(rig, following))
    assert [one.path for one in foreign(proxy).values()] == [following.order["disk"]["path"]]


def late_after_all(rig: Rig, proxy: FakeVm, task: Task) -> tuple[int, int]:
    """vSphere was asked for the disk, nobody heard the end of it, and the attempt was withdrawn; its place."""
    attempt = hand_out(rig, task)
    rig.vcenter.after["attach_disks"] = lost_answer
    with pytest.raises(UnavailableError):
        present(rig, task, attempt)
    [place] = foreign(proxy)
    proxy.attached.pop(place)  # not yet
    withdraw(rig, task, attempt)
    return place


def lost_answer() -> None:
    raise TransientTransportError("vSphere's task has not ended after 150 s")


def test_a_disk_that_came_after_its_intent_was_closed_is_swept(rig: Rig, proxy: FakeVm) -> None:
    [task] = tasks(rig)
    place = late_after_all(rig, proxy, task)
    late = DiskToAttach(path=task.order["disk"]["path"], write=False)
    proxy.attached[place] = late
    proxy.attached[0, 6] = DiskToAttach(path=late.path, write=True)  # not as we attached it
    proxy.attached[0, 8] = late  # not where we attached it
    attachments.sweep(rig.ctx, task.vcenter_id or "")
    assert set(foreign(proxy)) == {(0, 6), (0, 8)}
    # Long after, a person may have attached that file.
    rig.clock.advance(LATE_FOR.total_seconds() + 1)
    proxy.attached[place] = late
    attachments.sweep(rig.ctx, task.vcenter_id or "")
    assert set(foreign(proxy)) == {(0, 6), (0, 8), place}


def test_another_product_s_disk_is_left_alone_even_where_ours_was(rig: Rig, proxy: FakeVm) -> None:
    """The same file, in the same mode, in the same VM: of ours vSphere had answered that it was there, and gone."""
    [task] = tasks(rig)
    attempt = hand_out(rig, task)
    present(rig, task, attempt)
    [place] = foreign(proxy)
    withdraw(rig, task, attempt)
    proxy.attached[place] = theirs = DiskToAttach(path=task.order["disk"]["path"], write=False)
    attachments.sweep(rig.ctx, task.vcenter_id or "")
    rig.janitor.run_once()
    assert foreign(proxy) == {place: theirs}


def test_another_product_s_disk_is_neither_used_nor_taken_away(rig: Rig, proxy: FakeVm) -> None:
    [task] = tasks(rig)
    proxy.attached[0, 5] = theirs = DiskToAttach(path=task.order["disk"]["path"], write=False)
    attempt = hand_out(rig, task)
    with pytest.raises(ConflictError, match="not by vmhaul"):
        present(rig, task, attempt)
    end_attempt(rig, task.id)
    rig.janitor.run_once()
    attachments.sweep(rig.ctx, task.vcenter_id or "")
    assert foreign(proxy) == {(0, 5): theirs}
    assert rig.rows(Intent, kind="hot-added-disk", state="open") == []


def test_an_attachment_of_an_earlier_release_is_known_by_file_and_mode(rig: Rig, proxy: FakeVm) -> None:
    [task] = tasks(rig)
    present(rig, task, hand_out(rig, task))
    [intent] = rig.rows(Intent, kind="hot-added-disk")
    with rig.ctx.db() as s:
        row = s.get_one(Intent, intent.id)
        row.details = {k: v for k, v in row.details.items() if k not in {"places", "settled"}}
    end_attempt(rig, task.id)
    rig.janitor.run_once()
    assert foreign(proxy) == {}


def test_a_disk_that_another_session_reads_by_the_same_proxy_stays(rig: Rig, proxy: FakeVm) -> None:
    """Two intents for one file: the disk goes with the last."""
    [task] = tasks(rig)
    attempt = hand_out(rig, task)
    present(rig, task, attempt)
    [intent] = rig.rows(Intent, kind="hot-added-disk")
    with rig.ctx.db() as s:
        values = {c.name: getattr(intent, c.name) for c in Intent.__table__.columns}
        values |= {"id": "elder", "details": {**intent.details, "attempt": attempt - 1}}
        s.add(Intent(**values))
    rig.janitor.run_once()
    assert [one.id for one in rig.rows(Intent, kind="hot-added-disk", state="open")] == [intent.id]
    assert len(foreign(proxy)) == 1


def test_a_snapshot_stays_while_a_disk_of_it_is_attached(rig: Rig, proxy: FakeVm) -> None:
    [task] = tasks(rig)
    present(rig, task, hand_out(rig, task))
    end_attempt(rig, task.id)
    [intent] = rig.rows(Intent, kind="snapshot")
    client = rig.ctx.vcenters.get(intent.vcenter_id)
    rig.vcenter.fail("detach_disks", TransientTransportError("the VM is being reconfigured"))
    with pytest.raises(TransientTransportError, match="being reconfigured"):
        vm_snapshots.remove(rig.ctx, client, intent)
    assert "remove_snapshot" not in rig.vcenter.calls
    vm_snapshots.remove(rig.ctx, client, intent)
    assert foreign(proxy) == {}
    assert rig.vcenter.all_snapshots() == []


def test_a_disk_that_cannot_be_withdrawn_is_the_janitor_s(rig: Rig, proxy: FakeVm) -> None:
    [task] = tasks(rig)
    attempt = hand_out(rig, task)
    present(rig, task, attempt)
    rig.vcenter.fail("detach_disks", *[TransientTransportError("busy")] * 2)
    withdraw(rig, task, attempt)
    assert len(foreign(proxy)) == 1
    end_attempt(rig, task.id)
    rig.janitor.run_once()
    [intent] = rig.rows(Intent, kind="hot-added-disk", state="open")
    assert (intent.problem, intent.tries) == ("busy", 1)
    rig.clock.advance(timedelta(minutes=2).total_seconds())
    rig.janitor.run_once()
    assert foreign(proxy) == {}


def test_a_proxy_vm_that_is_gone_holds_nothing(rig: Rig, proxy: FakeVm) -> None:
    [task] = tasks(rig)
    present(rig, task, hand_out(rig, task))
    end_attempt(rig, task.id)
    del rig.vcenter.vms[proxy.moref]
    rig.janitor.run_once()
    assert rig.rows(Intent, kind="hot-added-disk", state="open") == []


def test_what_a_dead_proxy_left_is_looked_for_at_once(rig: Rig, proxy: FakeVm) -> None:
    """Not minutes later: the janitor's thread is woken when an attempt ends in the middle."""
    [task] = tasks(rig)
    present(rig, task, hand_out(rig, task))
    looked = threading.Event()
    rig.vcenter.after["detach_disks"] = looked.set
    rig.janitor.start()
    try:
        until(lambda: not rig.ctx.wake_janitor.is_set())
        end_attempt(rig, task.id)
        rig.ctx.wake_janitor.set()
        assert looked.wait(60)
        until(lambda: not rig.rows(Intent, kind="hot-added-disk", state="open"))
    finally:
        rig.janitor.stop()
    assert foreign(proxy) == {}
