"""What commands say of jobs, rules and datastores."""

from __future__ import annotations

from typing import Any

import pytest

from backup_server.cli import datastore, job_copy, job_options
from backup_server.cli.door import Door

AT_TWO = {"cron": "0 2 * * *", "time_zone": "UTC", "missed": "skip"}


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ({"schedule": None}, "by hand"),
        ({"schedule": AT_TWO, "window": None, "after_job": None}, "0 2 * * * (UTC)"),
        ({"schedule": None, "after_job": "nightly"}, "after nightly"),
        (
            {
                "schedule": AT_TWO,
                "after_job": "nightly",
                "window": {"text": "daily 22:00-06:00", "time_zone": "Europe/Berlin"},
            },
            "0 2 * * * (UTC) and after nightly, only daily 22:00-06:00 (Europe/Berlin)",
        ),
    ],
)
def test_when_a_job_runs(job: dict[str, Any], said: str) -> None:
    assert job_options.describe_start(job) == said


def test_what_starts_a_job_in_the_list_of_jobs() -> None:
    window = {"text": "daily 22:00-06:00", "time_zone": "UTC"}
    follows = {"schedule": None, "after_job": "nightly", "window": window}
    assert job_copy.describe_when(follows) == "after nightly"
    assert (
        job_copy.describe_when({**follows, "after_backup": True})
        == "after each backup, and after nightly"
    )
    assert job_copy.describe_when({"schedule": None, "after_backup": True}) == "after each backup"


def test_a_datastore(capsys: pytest.CaptureFixture[str]) -> None:
    values = {
        "max_tasks": 0,
        "max_snapshots": 4,
        "latency_control": True,
        "latency_stop_ms": 40.0,
        "latency_throttle_ms": 62.5,
    }
    item = {
        "name": "ds",
        "vcenter": "vc",
        "kind": "VMFS",
        "capacity_bytes": 1 << 40,
        "free_bytes": 1 << 39,
        "settings": {**dict.fromkeys(values), "latency_stop_ms": 40.0},
        "allowed": values,
        "read_latency_ms": None,
        "measured_at": None,
        "problem": "",
        "closed_since": None,
        "allowance_bytes_per_s": None,
        "running_tasks": 0,
        "pending_tasks": 0,
    }
    door = Door(data=None, server=None, token_file=None, json=False)
    datastore._show(door, item)
    shown = {
        line.split("  ")[0]: line.split("  ")[-1].strip()
        for line in capsys.readouterr().out.splitlines()
    }
    assert shown["tasks at once"] == "any (the server's setting)"
    assert shown["latency control"] == "yes (the server's setting)"
    assert shown["no new task above, ms"] == "40"
    assert shown["slowed above, ms"] == "62.5 (the server's setting)"
