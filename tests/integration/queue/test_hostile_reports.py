"""What proxies that are hostile, cloned, too old or on a false clock do to reports and orders, and what not."""

from __future__ import annotations

import base64
import re
import shutil
import threading
import time
from typing import Any, Self

import psutil
import pytest
import sqlalchemy as sa

from backup_server.db.states import TaskState
from backup_server.db.tables import Event
from backup_server.scheduler import reports
from proxy_worker.contracts.envelope import SERVER, Sealer
from proxy_worker.contracts.ids import Attempt, ProxyId, TaskId
from proxy_worker.contracts.messages import HeartbeatReport, RunningTask
from proxy_worker.contracts.names import STREAM_FIELD, up_stream
from tests.integration.queue.rig import ON_SQLITE, Rig, wait_for
from transports.base import TransportMode

pytestmark = [pytest.mark.timeout(180), ON_SQLITE]


def beat(proxy_id: str, boot: str, **values: Any) -> HeartbeatReport:
    given: dict[str, Any] = {
        "proxy_id": ProxyId(proxy_id),
        "boot_id": boot,
        "sequence": 1,
        "version": "0.4.0",
        "clock_s": time.time(),
        "slots": 2,
        "running": (),
        "stopping": False,
        "modes": (TransportMode.NBDSSL,),
        "cpu_share": 0.1,
        "free_memory_bytes": 1 << 30,
        **values,
    }
    return HeartbeatReport(**given)


def say(rig: Rig, name: str, proxy_id: str, report: Any, *, shift_s: float = 0.0) -> None:
    sealer = Sealer(proxy_id, rig.identity(name).signing, lambda: time.time() + shift_s)
    with rig.broker.client() as client:
        client.xadd(up_stream(ProxyId(proxy_id)), {STREAM_FIELD: sealer.seal(report, to=SERVER)})


def wait_read(rig: Rig, proxy_id: str) -> None:
    with rig.broker.client() as client:
        wait_for(lambda: client.xlen(up_stream(ProxyId(proxy_id))) == 0, "the stream's being read")


def events(rig: Rig, name: str) -> list[str]:
    with rig.db.read() as s:
        return [str(text) for text in s.scalars(sa.select(Event.text).where(Event.name == name))]


def test_two_machines_with_one_identity(rig: Rig) -> None:
    proxy_id, _ = rig.start_proxy("px1")
    shutil.copytree(rig.directory / "px1", rig.directory / "clone")
    rig.start_worker("clone")
    wait_for(lambda: rig.proxy(proxy_id).state_note, "the clone's being found")
    assert "two machines have its identity" in rig.proxy(proxy_id).state_note
    assert len(events(rig, "proxy.identity")) == 1
    # Neither gets anything new, and says why; another proxy takes it.
    [task_id] = rig.add_tasks(["alone"])
    wait_for(lambda: "identity" in str(rig.task(task_id).decision), "why it waits")
    assert rig.task(task_id).attempt == 0
    rig.start_proxy("px2")
    [row] = rig.wait_state([task_id], TaskState.DONE)
    assert (row.result, row.proxy_name) == ("success", "px2")


def test_what_runs_when_a_clone_appears_is_not_lost(rig: Rig) -> None:
    proxy_id, _ = rig.start_proxy("px1")
    rig.start_proxy("px2")
    ids = rig.add_tasks([f"disk {n} sleep=1" for n in range(4)])
    for task_id in ids:
        rig.wait_begun(task_id)
    shutil.copytree(rig.directory / "px1", rig.directory / "clone")
    rig.start_worker("clone")
    rows = rig.wait_state(ids, TaskState.DONE)
    assert {row.result for row in rows} == {"success"}
    wait_for(lambda: rig.proxy(proxy_id).state_note, "the clone's being found")


def test_false_clocks_and_foreign_releases_get_no_tasks_until_they_are_right(rig: Rig) -> None:
    proxy_id = rig.add_proxy("px1")
    say(rig, "px1", proxy_id, beat(proxy_id, "b", clock_s=time.time() + 250), shift_s=250)
    wait_for(lambda: "ahead of" in rig.proxy(proxy_id).state_note, "the clock's being seen")
    # Further off than envelopes are believed: only the broker's time tells.
    say(rig, "px1", proxy_id, beat(proxy_id, "b", clock_s=time.time() - 900), shift_s=-900)
    wait_for(lambda: "900 s behind" in rig.proxy(proxy_id).state_note, "the clock's being seen again")
    [task_id] = rig.add_tasks(["alone"])
    say(rig, "px1", proxy_id, beat(proxy_id, "b", version="0.2.9"))
    wait_for(
        lambda: "it runs release 0.2.9" in rig.proxy(proxy_id).state_note, "the release's being seen"
    )
    assert "clock" not in rig.proxy(proxy_id).state_note
    assert rig.task(task_id).attempt == 0
    say(rig, "px1", proxy_id, beat(proxy_id, "b", version="0.4.0"))
    wait_for(lambda: rig.proxy(proxy_id).state_note == "", "all in order")
    wait_for(lambda: rig.task(task_id).attempt == 1, "the task's being given out")
    assert [len(events(rig, f"proxy.{kind}")) for kind in ("clock", "version")] == [2, 2]


@pytest.mark.parametrize("name", ["version", "boot_id"])
def test_endless_words_about_itself_are_not_kept(rig: Rig, name: str) -> None:
    proxy_id = rig.add_proxy("px1")
    given = {
        "boot": "b",
        "version": "0.2.9",
        name if name == "version" else "boot": "0.2." + "9" * 90_000,
    }
    say(rig, "px1", proxy_id, beat(proxy_id, given["boot"], version=given["version"]))
    wait_read(rig, proxy_id)
    row = rig.proxy(proxy_id)
    kept = f"{row.version} {row.boot_id} {row.state_note} {row.facts}"
    assert len(kept) + len("".join(events(rig, "proxy.version"))) < 5000
    # What it says in words of a worker's length is heard.
    say(rig, "px1", proxy_id, beat(proxy_id, "b", version="0.2.9"))
    wait_for(lambda: "0.2.9" in rig.proxy(proxy_id).state_note, "the release's being seen")


def test_a_flood_of_junk_is_cut_off_and_stops_nobody_else(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "_MOST_STREAM_ENTRIES", 2000)
    monkeypatch.setattr(reports, "_MOST_STREAM_BYTES", 8 << 20)
    evil_id = rig.add_proxy("evil")
    rig.start_proxy("px1")
    stream = up_stream(ProxyId(evil_id))
    with rig.broker.client() as client:
        # No text, no fields of ours, much of it, and long ones.
        client.xadd(stream, {STREAM_FIELD: b"\xff\xfe\x00"})
        client.xadd(stream, {b"\xff": b"\xff"})
        with client.pipeline(transaction=False) as pipe:
            for number in range(6000):
                pipe.xadd(stream, {STREAM_FIELD: f"junk {number}"})
            pipe.execute()
        for _ in range(20):
            client.xadd(stream, {STREAM_FIELD: b"x" * 1_000_000})
        rows = rig.wait_state(rig.add_tasks(["one", "two", "three"]), TaskState.DONE)
        assert {row.result for row in rows} == {"success"}
        wait_for(lambda: client.xlen(stream) == 0, "the flood's being cut off")


def test_a_proxy_cannot_keep_or_end_the_lease_of_another(rig: Rig) -> None:
    px1, _ = rig.start_proxy("px1")
    evil = rig.add_proxy("evil")
    [task_id] = rig.add_tasks(["mine sleep=2"], allowed_proxies=[px1])
    rig.wait_begun(task_id)
    held = RunningTask(task_id=TaskId(task_id), attempt=Attempt(1))
    before = rig.task(task_id).proxy_boot_id
    say(rig, "evil", evil, beat(evil, "evil-boot", running=(held,)))
    # In the other's name, signed by itself: nobody believes it.
    say(rig, "evil", evil, beat(px1, "new-boot"))
    wait_read(rig, evil)
    row = rig.task(task_id)
    assert (row.proxy_id, row.attempt, row.proxy_boot_id or before) == (px1, 1, before)
    [row] = rig.wait_state([task_id], TaskState.DONE)
    assert (row.result, row.attempt) == ("success", 1)


class Recorder:
    """All that passes through the broker while it is open."""

    def __init__(self, rig: Rig) -> None:
        self._client = rig.broker.client()
        self._stop = threading.Event()
        self.seen: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._ready = ready
        self._thread.start()
        assert ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._client.ping()  # something to hear, so that the thread looks up
        self._thread.join(30)
        self._client.close()

    def _run(self) -> None:
        with self._client.monitor() as monitor:
            self._ready.set()
            for said in monitor.listen():
                self.seen.append(str(said["command"]))
                if self._stop.is_set():
                    return


def decoded(text: str) -> str:
    """The text, with all that could be Base64 inside of it in the clear, twice: envelopes are in messages."""
    for _ in range(2):
        parts = re.findall(r"[A-Za-z0-9_+/-]{16,}", text)
        text += "\n".join(
            base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=False).decode(
                "latin-1"
            )
            for part in parts
            if len(part) % 4 != 1
        )
    return text


def test_secrets_pass_through_no_broker_no_log_and_no_command_line(rig: Rig) -> None:
    with Recorder(rig) as recorder:
        _, worker = rig.start_proxy("px1")
        [task_id] = rig.add_tasks(["key need-secrets all-secrets sleep=1"])
        rig.wait_begun(task_id)
        process = psutil.Process(worker.process.pid)
        lines = [" ".join(one.cmdline()) for one in (process, *process.children(recursive=True))]
        environments = [str(one.environ()) for one in (process, *process.children(recursive=True))]
        [row] = rig.wait_state([task_id], TaskState.DONE)
    # The mover had them all: they stand in its result, where the test's mover puts them.
    secrets = ("key-1", "storage-secret-1", "clone-ticket-1")
    assert row.sha256 == 'key-1key-1|{"password": "storage-secret-1"}|clone-ticket-1'
    through = "\n".join(recorder.seen)
    order = decoded(through)
    assert task_id in order
    assert "BackupDiskOrder" in order or "repository_id" in order, "envelopes were not opened"
    results = [text for text in recorder.seen if "XADD" in text]
    assert results
    orders = decoded("\n".join(text for text in recorder.seen if "LPUSH" in text))
    for place in (orders, rig.logs(), *lines, *environments):
        assert [one for one in secrets if one in place] == []
