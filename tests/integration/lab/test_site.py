"""A site starts, shows its disks, takes faults, and ends without leaving anything running."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from vmhaul_lab import process, verify
from vmhaul_lab.cli import main
from vmhaul_lab.content import MIB
from vmhaul_lab.control import ControlClient
from vmhaul_lab.errors import ControlError, LabError
from vmhaul_lab.images import DiskPlan
from vmhaul_lab.plan import VmPlan
from vmhaul_lab.site import LabSite
from vmhaul_lab.state import ProcessMark, SiteState

pytestmark = pytest.mark.lab


def test_disks_are_those_of_the_plan(quick_site: LabSite) -> None:
    disks = quick_site.disks()
    assert sorted({disk.vm for disk in disks}) == ["vm01", "vm02"]
    assert len(disks) == 4
    for disk in disks:
        assert disk.capacity_bytes == 16 * MIB
        assert disk.live_file.stat().st_size == 16 * MIB
        assert disk.snapshots == ()
    assert quick_site.disk("vm01", 1).key < quick_site.disk("vm01", 2).key
    assert [vm.name for vm in quick_site.control.vms()] == ["vm01", "vm02"]


def test_vcenter_answers_with_the_certificate_that_was_announced(quick_site: LabSite) -> None:
    import hashlib
    import ssl

    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((quick_site.vcenter_host, quick_site.vcenter_port), timeout=10) as raw,
        context.wrap_socket(raw) as link,
    ):
        certificate = link.getpeercert(binary_form=True)
    assert certificate is not None
    seen = hashlib.sha256(certificate).hexdigest()
    assert quick_site.thumbprint_sha256.replace(":", "").lower() == seen


def test_guests_write_and_read_their_live_disk(quick_site: LabSite) -> None:
    disk = quick_site.disk("vm02", 2)
    before = quick_site.live_sha256(disk)
    quick_site.guest_write(disk, 8 * MIB - 3, b"across")
    assert quick_site.guest_read(disk, 8 * MIB - 3, 6) == b"across"
    assert quick_site.live_sha256(disk) != before
    with pytest.raises(LabError, match="do not lie in"):
        quick_site.guest_write(disk, 16 * MIB - 1, b"xx")


def test_a_day_changes_every_disk(quick_site: LabSite) -> None:
    before = {(disk.vm, disk.key): verify.sha256(disk.live_file) for disk in quick_site.disks()}
    reports = quick_site.day_of_work()
    after = {(disk.vm, disk.key): verify.sha256(disk.live_file) for disk in quick_site.disks()}
    assert len(reports) == 4
    assert all(after[key] != before[key] for key in before)


def test_faults_are_armed_and_cleared(quick_site: LabSite) -> None:
    control = quick_site.control
    control.fault("nfc-cut", count=2, after_bytes=1000)
    assert "nfc-cut" in json.dumps(control.faults())
    control.clear_faults()
    assert "nfc-cut" not in json.dumps(control.faults())
    with pytest.raises(ControlError, match="no-such-fault"):
        control.fault("no-such-fault")


def test_counters_start_again_from_zero(quick_site: LabSite) -> None:
    quick_site.control.reset_stats()
    assert isinstance(quick_site.control.stats(), dict)


def test_plans_decide_datastore_mode_kind_and_power(tmp_path: Path, labvc_binary: Path) -> None:
    vm = VmPlan(
        name="one",
        folder="Prod/Web",
        pool="Gold",
        power="off",
        tags=("backup:daily",),
        disks=(
            DiskPlan(label="first", capacity_bytes=8 * MIB, layout="raw", thin=False),
            DiskPlan(
                label="second",
                capacity_bytes=8 * MIB,
                layout="empty",
                datastore="nfs-bulk",
                mode="independent_persistent",
            ),
        ),
    )
    with LabSite.quick(tmp_path / "site", (vm,), binary=labvc_binary) as site:
        first, second = site.disks("one")
        assert (first.thin, second.thin) == (False, True)
        assert first.live_file.is_relative_to(tmp_path / "site/datastores/vmfs-fast")
        assert second.live_file.is_relative_to(tmp_path / "site/datastores/nfs-bulk")
        assert verify.content_digest(second.live_file) != verify.content_digest(first.live_file)


def test_the_program_ends_with_the_site_and_with_its_starter(
    tmp_path: Path, labvc_binary: Path
) -> None:
    site = LabSite.quick(tmp_path / "site", 1, binary=labvc_binary)
    with site:
        mark = ProcessMark.of(site.pid)
        control = site.control
        assert mark.alive()
    assert not mark.alive()
    with pytest.raises(ControlError, match="does not answer"):
        control.vms()
    site.stop()

    script = (
        "import sys, os, signal; from pathlib import Path; from vmhaul_lab.site import LabSite\n"
        f"site = LabSite.quick(Path({str(tmp_path / 'other')!r}), 1, binary=Path({str(labvc_binary)!r}))\n"
        "site.start(); print(site.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    orphan = ProcessMark.of(int(done.stdout))
    if orphan.alive():
        assert orphan._gone_within(10)


def test_a_program_that_does_not_start_is_told_with_its_log(tmp_path: Path) -> None:
    program = tmp_path / "labvc"
    program.write_text("#!/bin/sh\necho 'no such option' >&2\nexit 2\n")
    program.chmod(0o755)
    with pytest.raises(LabError, match="no such option"):
        LabSite.quick(tmp_path / "site", 1, binary=program).start()


def test_a_directory_holds_one_site(tmp_path: Path, labvc_binary: Path) -> None:
    with LabSite.quick(tmp_path / "site", 1, binary=labvc_binary):
        pass
    with pytest.raises(LabError, match="holds a site already"):
        LabSite.quick(tmp_path / "site", 1, binary=labvc_binary).start()


def test_commands_find_the_site_by_its_directory(
    quick_site: LabSite, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--dir", str(quick_site.directory)]
    assert main(["status", *where]) == 0
    assert quick_site.address in capsys.readouterr().out
    assert main(["disks", *where, "--json"]) == 0
    assert {disk["vm"] for disk in json.loads(capsys.readouterr().out)} == {"vm01", "vm02"}
    assert main(["day", *where, "--vm", "vm01", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert main(["fault", *where, "nfc-cut", "count=3", "after_bytes=77"]) == 0
    assert main(["clear-faults", *where]) == 0
    assert main(["stats", *where, "--json"]) == 0
    assert main(["drop-sessions", *where]) == 0
    assert main(["power-loss", *where, "vm01"]) == 0
    capsys.readouterr()
    path = quick_site.disk("vm02", 1).live_file
    assert main(["hash", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {str(path): verify.sha256(path)}
    assert main(["hash", str(path) + ".none"]) == 1
    assert main(["status", "--dir", str(quick_site.directory / "none")]) == 1


def test_up_runs_in_the_foreground_until_it_is_told_to_end(tmp_path: Path, labvc_binary: Path) -> None:
    program = Path(sys.executable).with_name("vmhaul-lab")
    with subprocess.Popen(
        [program, "up", "--dir", tmp_path / "site", "--size", "small", "--json"],
        stdout=subprocess.PIPE,
        env={**os.environ, "VMHAUL_LABVC": str(labvc_binary)},
    ) as up:
        assert up.stdout is not None
        said = json.loads(up.stdout.readline())
        state = SiteState.read(tmp_path / "site")
        assert said["vcenter"] == state.vcenter
        assert Path(state.proxies["proxy-vm"]["sys_path"], "block", "sda").exists()
        assert state.nfs_host
        disks = ControlClient(state.control).disks()
        assert {result.clean for disk in disks for result in verify.fsck(disk.live_file)} == {True}
        up.send_signal(signal.SIGTERM)
        assert up.wait(timeout=30) == 0
    assert not state.process.alive()
    assert state.hardware is not None
    assert not state.hardware.alive()
    assert not (tmp_path / "site").exists()


def test_control_says_who_does_not_answer() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(ControlError, match=address):
            ControlClient(address).vms()


def test_control_never_goes_through_a_proxy(
    quick_site: LabSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert urllib.request.getproxies()["http"]
    assert len(ControlClient(quick_site.control.address).disks()) == 4


def test_a_named_program_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMHAUL_LABVC", str(tmp_path / "other"))
    assert process.labvc_binary() == tmp_path / "other"
