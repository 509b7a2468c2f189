"""The demo passes, and says so only when what came back is what was there."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from vmhaul_lab import demo
from vmhaul_lab.loops import loops_under

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]


def run_small(directory: Path) -> "subprocess.CompletedProcess[str]":
    program = Path(sys.executable).with_name("vmhaul-lab")
    return subprocess.run(
        [program, "demo", "--size", "small", "--dir", directory],
        capture_output=True,
        text=True,
        check=False,
    )


def running_in(directory: Path) -> list[str]:
    """Command lines of processes that name the directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(str(directory) in word for word in words):
            found.append(" ".join(words))
    return found


def test_the_demo_ends_well_and_leaves_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    done = run_small(directory)
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[-1]) == (0, "demo: OK"), done.stdout[-4000:] + done.stderr[-2000:]
    assert not directory.exists()
    assert running_in(directory) == []
    typed = [
        line.removeprefix("$ vmhaul ").split()[:2] for line in lines if line.startswith("$ vmhaul ")
    ]
    for words in ("vcenter add", "repository add", "proxy add", "job create", "job plan", "restore vm"):
        assert words.split() in typed
    assert typed.count(["job", "run"]) == 2
    assert typed.count(["restore", "disk"]) == 12
    assert any(line.startswith("the increment read") for line in lines)
    # 6 disks of each of two points, and those of two VMs of two disks each.
    assert (
        sum(" yes " in line for line in lines if line.startswith(("full", "increment", "restore VM")))
        == 16
    )
    modes = {line.split()[5] for line in lines if line.startswith(("full", "increment"))}
    assert {"hotadd", "direct-nfs"} <= modes


def test_the_demo_fails_when_a_disk_is_not_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A guest writes after its disk was hashed for the second run: what is restored is something else then. Only that
    guest's disks are restored: of all others, and of whole VMs, the test above tells.
    """
    directory = tmp_path / "demo"
    honest = demo.Demo._evidence
    taken = []

    def evidence_and_a_write(performance: demo.Demo) -> demo.Evidence:
        found = honest(performance)
        taken.append(found)
        if len(taken) == 2:
            site = performance._site
            site.guest_write(site.disk("files01"), 4096, b"nobody saw this")
        return found

    restore_all = demo.Demo._restore_disks

    def restore_those(
        performance: demo.Demo, points: Sequence[tuple[str, demo.Evidence, dict[str, Any]]]
    ) -> None:
        def only(session: dict[str, Any]) -> dict[str, Any]:
            return {**session, "vms": [vm for vm in session["vms"] if vm["name"] == "files01"]}

        restore_all(performance, [(name, found, only(session)) for name, found, session in points])

    monkeypatch.setattr(demo.Demo, "_evidence", evidence_and_a_write)
    monkeypatch.setattr(demo.Demo, "_restore_disks", restore_those)
    monkeypatch.setattr(demo.Demo, "_restore_vm", lambda *_: None)
    assert demo.run_demo(directory, size="small", keep=False) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1] == "demo: FAILED files01 Hard disk 1 (increment) differs from its source"
    assert running_in(directory) == []
    assert loops_under(directory) == []
    assert (directory / "up.log").exists()


def test_a_directory_with_other_things_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    done = run_small(tmp_path)
    assert done.returncode == 1
    assert done.stdout.startswith("demo: FAILED ")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
