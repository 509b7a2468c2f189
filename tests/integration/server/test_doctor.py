"""What the server says of itself."""

from __future__ import annotations

import stat
import threading

import pytest

from backup_server.db.tables import Proxy
from backup_server.services import (
    about,
    doctor,
)
from tests.fakes.server import Rig
from transports.errors import TransientTransportError


def test_doctor_finds_what_is_wrong(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    vm = rig.vcenter.add_vm("db02", disks=1)
    rig.vcenter.snapshot_by_hand(vm, "by hand")
    rig.job()
    rig.vcenter.missing = ["VirtualMachine.State.CreateSnapshot"]
    checks = {(check["name"], check["level"]): check for check in doctor.run_checks(rig.ctx)}
    assert ("database", "ok") in checks
    assert ("broker", "error") in checks
    assert "logged in as backup" in checks["vCenter vc1", "ok"]["text"]
    assert "CreateSnapshot" in checks["vCenter vc1 rights", "error"]["text"]
    assert "db02" in checks["vCenter vc1 change tracking", "warning"]["text"]
    assert "50.0 of 100.0 GiB" in checks["repository r1", "ok"]["text"]
    assert checks["proxy default", "error"]["advice"]
    assert ("leftovers", "ok") in checks
    for check in checks.values():
        assert set(check) == {"name", "level", "text", "advice"}
        assert check["level"] == "ok" or check["advice"], check
    rig.vcenter.thumbprint = "another"
    found = {check["name"]: check["level"] for check in doctor.run_checks(rig.ctx)}
    assert found["vCenter vc1 certificate"] == "error"


def test_doctor_asks_for_the_rights_of_hotadd_where_a_proxy_could_use_them(rig: Rig) -> None:
    rig.vcenter.missing_of["hotadd"] = ["VirtualMachine.Config.AddExistingDisk"]

    def found() -> list[str]:
        return [check["text"] for check in doctor.run_checks(rig.ctx) if check["level"] == "warning"]

    assert not any("hotadd" in text for text in found())
    with rig.ctx.db() as s:
        [proxy] = s.query(Proxy).all()
        proxy.facts = {"modes": ["hotadd", "nbdssl"]}
    assert "for hotadd these are missing: VirtualMachine.Config.AddExistingDisk" in found()


def test_doctor_does_not_wait_for_a_vcenter_that_is_silent(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, asked = threading.Event(), threading.Event()

    def silent(*_: object) -> None:
        asked.set()
        ended.wait(60)
        raise TransientTransportError("silent")

    monkeypatch.setattr(doctor, "VCENTER_PATIENCE_S", 0.05)
    monkeypatch.setattr(rig.ctx.vcenters, "probe", silent)
    checks = {check["name"]: check for check in doctor.run_checks(rig.ctx)}
    ended.set()
    for thread in [one for one in threading.enumerate() if one.name == "doctor"]:
        thread.join(30)  # it uses the database, which ends with the test
    assert asked.is_set()
    assert "gave no answer" in checks["vCenter vc1"]["text"]
    assert checks["repository r1"]["level"] == "ok"


def test_about_and_health(rig: Rig) -> None:
    shown = about.about(rig.ctx)
    assert shown["server_id"] == rig.ctx.server_id
    assert shown["started_at"] == "2026-03-02T20:00:00Z"
    assert about.health(rig.ctx)["status"] == "unavailable"
    assert list(about.health(rig.ctx)["parts"]) == ["broker"]


def test_server_id_and_keys_stay(rig: Rig) -> None:
    before = rig.ctx.server_id
    rig.restart()
    assert rig.ctx.server_id == before
    for name in ("server.key", "server-signing.key"):
        file = rig.settings.data_dir / name
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.stat().st_size == 32
    assert rig.settings.data_dir.stat().st_mode & 0o077 == 0
