from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backup_server.cli import follow, output, summary
from backup_server.cli.door import Door

TASK = {
    "id": "t1",
    "label": "Hard disk 1",
    "state": "done",
    "result": "success",
    "reason": "",
    "proxy": "default",
    "mode": "nbdssl",
    "read_mode": "increment",
    "read_mode_reason": "",
    "stats": {
        "capacity_bytes": 1 << 30,
        "read_bytes": 200_000_000,
        "stored_bytes": 50_000_000,
        "duration_s": 2.0,
    },
}


def _session(*tasks: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "id": "s1",
        "kind": "backup",
        "job": "nightly",
        "state": "finished",
        "result": "success",
        "reason": "",
        "started_at": "2026-11-23T02:00:00Z",
        "finished_at": "2026-11-23T02:00:10Z",
        "progress": {},
        "vms": [
            {
                "name": "db01",
                "state": "done",
                "result": "success",
                "reason": "",
                "warnings": [],
                "tasks": list(tasks),
            }
        ],
        **changes,
    }


def test_a_disk_on_one_line() -> None:
    session = _session(TASK)
    [(vm, task)] = summary.disk_tasks(session)
    assert summary.disk_row(vm, task) == (
        "db01",
        "Hard disk 1",
        "nbdssl",
        "default",
        "increment",
        "190.7 MiB",
        "47.7 MiB",
        "4.0x",
        "100.0 MB/s",
        "success",
    )


def test_a_disk_without_figures() -> None:
    session = _session({"label": "Hard disk 1", "state": "pending"})
    [(vm, task)] = summary.disk_tasks(session)
    assert summary.disk_row(vm, task)[5:] == ("-", "-", "-", "-", "pending")


def test_the_sentence() -> None:
    text = summary.sentence(_session(TASK, TASK))
    assert text == (
        "Backup nightly ended: success, 1 VM with 2 disks, 381.5 MiB read, 95.4 MiB transferred, "
        "10s in all, 40.0 MB/s."
    )


def test_the_sentence_of_a_session_that_failed_early() -> None:
    session = _session(result="failed", reason="no VM was found", started_at=None, vms=[])
    assert summary.sentence(session) == "Backup nightly ended: failed: no VM was found."


def test_the_sentence_of_a_session_that_goes_on() -> None:
    session = _session(result=None, state="running", reason="", finished_at=None, vms=[])
    assert summary.sentence(session) == "Backup nightly is running."


def test_until_when_a_session_waits_and_why_it_stops() -> None:
    queued = _session(state="queued", waits_until="2026-11-23T22:00:00Z", stop_reason="", vms=[])
    assert [name for name, _ in summary.waiting(queued)] == ["waits until"]
    running = _session(state="running", waits_until=None, stop_reason="the window closed", vms=[])
    assert list(summary.waiting(running)) == [("stops", "the window closed")]
    assert not list(summary.waiting(_session(waits_until=None, stop_reason="the window closed")))


def test_remarks_name_vm_and_disk() -> None:
    task = {
        **TASK,
        "reason": "NFC was cut",
        "read_mode": "full-scan",
        "read_mode_reason": "no change id",
    }
    session = _session(task)
    session["vms"][0]["warnings"] = ["tools do not run"]
    assert list(summary.remarks(session)) == [
        "db01: tools do not run",
        "db01 / Hard disk 1: NFC was cut",
        "db01 / Hard disk 1: read in full: no change id",
    ]


def test_the_closing_table(capsys: pytest.CaptureFixture[str]) -> None:
    summary.print_summary(_session(TASK))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["VM", "disk"]
    assert "db01" in lines[2]
    assert "100.0 MB/s" in lines[2]
    assert lines[-1].startswith("Backup nightly ended: success")


def test_a_check_shows_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    report = {"points": 4, "read_bytes": 1 << 20, "problems": ["pack 7 is damaged"]}
    summary.print_summary(
        _session(kind="repository-check", job=None, vms=[], result="failed", report=report)
    )
    text = capsys.readouterr().out
    assert "points  4" in text
    assert "read    1.0 MiB" in text
    assert "problem: pack 7 is damaged" in text
    assert "Repository check ended: failed" in text


def test_the_progress_line() -> None:
    progress = {
        "total_bytes": 1 << 30,
        "done_bytes": 1 << 29,
        "bytes_per_s": 1e8,
        "eta_s": 5.4,
        "bottleneck": "source",
    }
    counts = {"vms": 1, "tasks": 2, "tasks_done": 1}
    session = _session(state="running", progress=progress, counts=counts)
    assert follow.progress_line(session) == (
        "progress: 50 % of 1.0 GiB, 100.0 MB/s, ETA 5.4s, bottleneck source, 1 of 2 disks done"
    )


def test_a_table_of_nothing_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("name",), [], empty="No job yet.")
    assert capsys.readouterr().out == "No job yet.\n"


def test_rows_stay_whole_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("name", "size"), [("x" * 150, "1.0 GiB"), (True, None)], right=("size",))
    lines = capsys.readouterr().out.splitlines()
    assert "x" * 150 in lines[2]
    assert lines[3].split() == ["yes", "-"]
    assert "\x1b" not in "".join(lines)


def test_a_restore_has_its_own_columns(capsys: pytest.CaptureFixture[str]) -> None:
    task = {**TASK, "kind": "restore-disk-to-file", "read_mode": None, "capacity_bytes": 1 << 30}
    summary.print_summary(_session(task, kind="restore", job=None))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "VM",
        "disk",
        "mode",
        "proxy",
        "capacity",
        "read",
        "written",
        "rate",
        "result",
    ]
    assert "file" in lines[2].split()
    assert lines[-1] == (
        "Restore ended: success, 1 VM with 1 disk, 190.7 MiB read, 47.7 MiB written, 10s in all, 5.0 MB/s."
    )


def test_what_a_run_left_out_is_said() -> None:
    report = {
        "warnings": ["VM 'x' is named but missing"],
        "skipped": [{"name": "tpl", "reason": "a template"}],
    }
    session = _session(TASK, report=report)
    assert list(summary.report_lines(session)) == [
        "warning: VM 'x' is named but missing",
        "left out: tpl: a template",
    ]
    assert list(summary.report_facts(session)) == []


def test_hints_repeat_only_what_the_environment_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door(data=Path("/data"), server=None, token_file=None, json=False)
    monkeypatch.delenv("VMHAUL_DATA", raising=False)
    assert door.hint("job list") == "vmhaul job list --data /data"
    monkeypatch.setenv("VMHAUL_DATA", "/data")
    assert door.hint("job list") == "vmhaul job list"
    far = Door(data=Path("/data"), server="http://far", token_file=Path("t"), json=False)
    assert far.hint("job list") == "vmhaul job list --server http://far --token-file t"


def test_modes_that_were_left_are_told_with_the_reason() -> None:
    left = {"proxy": "px1", "mode": "hotadd", "reason": "no free slot", "attempt": 1}
    session = _session({**TASK, "failovers": [left]})
    [(vm, task)] = summary.disk_tasks(session)
    assert summary.disk_row(vm, task)[2] == "hotadd -> nbdssl"
    told = "db01 / Hard disk 1: hotadd -> nbdssl: hotadd on px1 was left: no free slot"
    assert told in list(summary.remarks(session))
    assert summary.mode_path({**TASK, "failovers": []}) == "nbdssl"


def test_a_page_of_a_big_session_says_what_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"vms": 9000, "tasks": 27000, "tasks_done": 27000, "success": 8999, "failed": 1}
    progress = {"read_bytes": 3 << 40, "stored_bytes": 1 << 40}
    summary.print_summary(_session(TASK, counts=counts, progress=progress, vms_next="1"))
    text = capsys.readouterr().out
    assert "1 of 9000 VMs shown (8999 success, 1 failed)" in text
    assert "9000 VMs with 27000 disks, 3.0 TiB read, 1.0 TiB transferred" in text
