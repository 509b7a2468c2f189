"""The lab's pure parts: plans, words of the command line, process marks, the outcome of a disk."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from vmhaul_lab import fat, plan
from vmhaul_lab.cli import parse_values
from vmhaul_lab.demo_report import Outcome, increment_sentence, totals
from vmhaul_lab.errors import CommandError, LabError
from vmhaul_lab.shell import Shell
from vmhaul_lab.state import ProcessMark, SiteState, write_private


@pytest.mark.parametrize("size", ["small", "normal", "large"])
def test_a_sites_names_are_unique_and_its_parts_exist(size: str) -> None:
    site = plan.sized(size, huge=True)
    keys = [f"{vm}/{disk.label}" for vm, disk in site.disks()]
    assert len(keys) == len(set(keys))
    stores = {store.name for store in site.datastores} | {""}
    for vm in site.vms:
        assert vm.host in site.hosts
        assert vm.pool in (*site.pools, "")
        assert {disk.datastore for disk in vm.disks} <= stores
    for _, disk in site.disks():
        assert not disk.clone_of or disk.clone_of in keys
        assert sum(content.budget_bytes for content in disk.contents) < disk.capacity_bytes * 3 // 4
    assert any(not disk.thin for _, disk in site.disks())
    assert max(disk.capacity_bytes for _, disk in site.disks()) == 2 << 40


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(LabError, match="medium"):
        plan.sized("medium")


def test_site_json_names_images_folders_and_datastores(tmp_path: Path) -> None:
    site = plan.sized("small")
    image = tmp_path / "images" / "web01-system.raw"
    said = json.loads(
        json.dumps(site.site_json(tmp_path, {"web01/system": image}, "pw", "127.0.0.1:0"))
    )
    assert said["password"] == "pw"
    assert said["datacenters"][0]["folders"] == ["Prod", "Prod/DB", "Prod/Web", "Proxies"]
    web = said["vms"][0]
    assert [disk["image"] for disk in web["disks"]] == [str(image), ""]
    assert {store["type"] for store in said["datacenters"][0]["datastores"]} == {"VMFS", "NFS"}
    assert "cbt_page_bytes" not in said


def test_values_of_the_command_line() -> None:
    assert parse_values(["bytes=1000", "vm=web01", "on=true", "why=a=b"]) == {
        "bytes": 1000,
        "vm": "web01",
        "on": True,
        "why": "a=b",
    }
    with pytest.raises(LabError, match="KEY=VALUE"):
        parse_values(["bytes"])


def test_a_process_is_known_by_number_and_start_and_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        mark = ProcessMark.of(child.pid)
        assert mark.alive()
        other = ProcessMark(pid=child.pid, started="1")
        assert not other.alive()
        assert other.end(grace_s=1)
        assert child.poll() is None
        assert mark.end(grace_s=10)
        assert child.wait(timeout=10) == -15
        assert not mark.alive()
    finally:
        child.kill()
        child.communicate()


def test_state_of_a_site_that_ended_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no site in"):
        SiteState.read(tmp_path)
    state = SiteState(
        directory=str(tmp_path),
        vcenter="127.0.0.1:1",
        control="127.0.0.1:2",
        user="u",
        password="p",
        thumbprint_sha1="",
        thumbprint_sha256="",
        process=ProcessMark(pid=1, started="never"),
    )
    state.write()
    assert (tmp_path / "lab.json").stat().st_mode & 0o777 == 0o600
    with pytest.raises(LabError, match="has ended"):
        SiteState.read(tmp_path)


def test_private_files_are_private_even_when_they_were_not(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600


def session(read: int, stored: int) -> dict[str, object]:
    task = {
        "disk_key": 2000,
        "label": "Hard disk 1",
        "mode": "nbdssl",
        "proxy": "default",
        "read_mode": "full",
        "stats": {
            "read_bytes": read,
            "stored_bytes": stored,
            "capacity_bytes": 4 << 20,
            "duration_s": 2,
        },
    }
    return {"kind": "backup", "vms": [{"name": "web01", "tasks": [task]}]}


def test_outcome_of_a_disk_says_what_differs(tmp_path: Path) -> None:
    said = session(1000, 500)
    (vm,) = said["vms"]
    outcome = Outcome.of_task(said, "web01", vm["tasks"][0])
    assert not outcome.good
    assert "was not compared" in outcome.complaint()
    image = tmp_path / "disk.raw"
    image.write_bytes(b"x" * 4096)
    outcome.compare(image, "0" * 64)
    assert not outcome.good
    assert "differs from its source" in outcome.complaint()
    outcome.compare(image, hashlib.sha256(b"x" * 4096).hexdigest())
    assert outcome.good


def test_increment_is_told_in_figures() -> None:
    full, increment = session(100 << 20, 50 << 20), session(5 << 20, 1 << 20)
    assert totals(full) == (100 << 20, 50 << 20, 4 << 20)
    assert "read 5 MiB" in increment_sentence(full, increment)
    assert "5.0 %" in increment_sentence(full, increment)


def test_fat16_volume_has_its_file() -> None:
    body = b"menu\n" * 1000
    volume = fat.fat16(16 << 20, {"GRUB.CFG": body}, serial=7)
    assert volume[510:512] == b"\x55\xaa"
    assert b"GRUB    CFG" in volume
    assert body in volume


def shell_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Shell:
    program = tmp_path / "vmhaul"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr("vmhaul_lab.shell.vmhaul_program", lambda: program)
    return Shell(tmp_path, tmp_path / "data")


def test_commands_are_shown_as_typed_and_get_their_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shell = shell_with(tmp_path, monkeypatch, 'read line; echo "got $line and $* in $VMHAUL_DATA"')
    (tmp_path / "word").write_text("secret\n")
    shell.run("vcenter", "add", "my lab", stdin="word")
    said = capfd.readouterr().out.splitlines()
    assert said[0] == "$ vmhaul vcenter add 'my lab' < word"
    assert said[1] == f"got secret and vcenter add my lab in {tmp_path}/data"


def test_a_command_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = shell_with(tmp_path, monkeypatch, "echo broken >&2; exit 4")
    with pytest.raises(CommandError, match=r"job run nightly.*status 4"):
        shell.run("job", "run", "nightly")
    with pytest.raises(CommandError, match="status 4: broken"):
        shell.ask("job", "list")
    assert shell.run("job", "run", "nightly", ok=(0, 4)) == 4
