"""Every transport mode at every kind of disk, through the command line: what comes back is what was there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from vmhaul_lab.loops import loops_under
from vmhaul_lab.matrix import MODES, ModePlan

from .test_demo import running_in

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


@pytest.mark.parametrize("plan", MODES, ids=lambda plan: plan.name)
def test_what_comes_back_is_what_was_there(tmp_path: Path, plan: ModePlan) -> None:
    directory = tmp_path / "matrix"
    program = Path(sys.executable).with_name("vmhaul-lab")
    done = subprocess.run(
        [program, "matrix", "--mode", plan.name, "--disk-mib", "8", "--json", "--dir", directory],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    cells = json.loads(done.stdout[done.stdout.rindex("\n[\n") :])
    wanted = {
        (disk, snapshots, step)
        for snapshots in ((False, True) if plan.with_snapshots else (False,))
        for disk in ("thin", "thick", "eager")
        for step in ("full", "increment", *(("restore",) if disk in plan.writes else ()))
    }
    assert {(cell["disk"], cell["snapshots"], cell["step"]) for cell in cells} == wanted
    assert all(cell["equal"] for cell in cells)
    assert running_in(directory) == []
    assert loops_under(directory) == []
    assert not directory.exists()
