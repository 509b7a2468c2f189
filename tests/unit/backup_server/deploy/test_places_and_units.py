from __future__ import annotations

import io
import subprocess
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from backup_server.deploy.machine import Ran, ThisMachine, put
from backup_server.deploy.places import Places
from backup_server.deploy.unit import CAPABILITIES, init_script, systemd_unit
from backup_server.deploy.wheel import carried_wheel

OTHER = Places(
    install_dir="/srv/vmhaul/two",
    data_dir="/srv/proxy two".replace(" ", "-"),
    service="px-2",
    user="px2",
)


@pytest.mark.parametrize(
    "path", ["/", "/opt", "opt/vmhaul", "/opt/../etc", "/opt/a b", "/opt/a;b", "/opt/a\n/b", ""]
)
def test_directories_that_would_take_more_with_them_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="must be an absolute path"):
        Places(install_dir=path)
    with pytest.raises(ValueError, match="must be an absolute path"):
        Places(data_dir=path)


@pytest.mark.parametrize("name", ["", "Root", "a b", "a;b", "-x", "x" * 40, "a/b", "%i"])
def test_names_that_a_unit_cannot_carry_are_refused(name: str) -> None:
    for field in ("service", "user"):
        with pytest.raises(ValueError, match=field):
            Places.of({field: name})


def test_places_come_back_as_they_were_stored() -> None:
    assert Places.of(OTHER.values()) == OTHER
    assert Places.of({"service": None}) == Places()


def test_the_unit_is_for_a_user_with_few_rights() -> None:
    unit = systemd_unit(OTHER)
    lines = unit.splitlines()
    assert "User=px2" in lines
    assert (
        "ExecStart=/srv/vmhaul/two/current/venv/bin/python -m proxy_worker --data /srv/proxy-two"
        in lines
    )
    ambient = " ".join(f"CAP_{name}" for name in CAPABILITIES)
    assert {f"AmbientCapabilities={ambient}", f"CapabilityBoundingSet={ambient}"} <= set(lines)
    assert {"NoNewPrivileges=yes", "Restart=always", "KillMode=mixed"} <= set(lines)
    # Every line is a comment, a section, or a setting.
    assert all(not line or line[0] in "#[" or "=" in line for line in lines)
    assert "{" not in unit


@pytest.mark.parametrize("openrc", [False, True])
def test_scripts_are_shell(openrc: bool) -> None:
    script = init_script(OTHER, openrc=openrc)
    assert subprocess.run(["sh", "-n"], input=script.encode(), check=False).returncode == 0
    assert "--reuid=px2" in script
    assert "{" not in script.replace("() {", "")


def test_the_wheel_holds_what_runs_here_and_is_the_same_each_time() -> None:
    wheel = carried_wheel()
    assert wheel.version == version("vmhaul")
    assert carried_wheel().content == wheel.content
    names = zipfile.ZipFile(io.BytesIO(wheel.content)).namelist()
    assert {
        "proxy_worker/__main__.py",
        "backup_server/web/templates/base.html",
        "pipeline/py.typed",
        f"vmhaul-{wheel.version}.dist-info/METADATA",
    } <= set(names)
    assert not [
        name for name in names if "__pycache__" in name or "vmhaul_lab" in name or "tests/" in name
    ]
    assert len(names) == len(set(names))
    record = zipfile.ZipFile(io.BytesIO(wheel.content)).read(names[-1]).decode()
    assert names[-1].endswith("RECORD")
    assert len(record.splitlines()) == len(names)
    assert wheel.release_id.startswith(f"{wheel.version}-")


def test_commands_on_this_machine(tmp_path: Path) -> None:
    machine = ThisMachine()
    ran = machine.run(["sh", "-c", 'cat; echo "$0" >&2; exit 3', "a b"], stdin=b"in")
    assert ran == Ran(status=3, output="in", errors="a b\n")
    assert machine.run(["there-is-no-such-program"]).status == 127
    target = tmp_path / "a 'file'"
    put(machine, str(target), b"\x00content", mode=0o640)
    assert target.read_bytes() == b"\x00content"
    assert target.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [target]


def test_a_long_complaint_is_cut_to_its_end() -> None:
    why = Ran(status=1, output="", errors="\n".join(f"line {number}" for number in range(100))).why()
    assert why.endswith("line 99")
    assert "line 50" not in why
    assert Ran(status=7, output="", errors="").why() == "exit status 7"
