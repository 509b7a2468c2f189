from __future__ import annotations

import itertools
import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import structlog

from backup_server.deploy.install import InstallOrder, Undo, install, uninstall
from backup_server.deploy.look import PYTHONS, Facts, look
from backup_server.deploy.machine import Ran, StepError
from backup_server.deploy.places import Places
from backup_server.deploy.releases import Release, build, forget_others
from backup_server.deploy.unit import systemd_unit
from backup_server.deploy.wheel import Wheel
from backup_server.errors import InvalidError
from tests.fakes.machine import FakeMachine
from transports.vsphere.model import Secret

PLACES = Places()
WHEEL = Wheel(
    name="vmhaul-9.9-py3-none-any.whl", version="9.9", content=b"wheel", extras=frozenset({"san"})
)
TOKEN = "vmhaul-join-secret"


def _facts(machine: FakeMachine) -> Facts:
    return look(machine, PLACES, lambda: 1000.0)


def _order(**changes: object) -> InstallOrder:
    release = Release(wheel=WHEEL, python="/usr/bin/python3.11", extras=("san",))
    values: dict[str, object] = {
        "places": PLACES,
        "release": release,
        "packages": (),
        "optional_packages": (),
        "token": Secret(TOKEN),
        **changes,
    }
    return InstallOrder(**values)  # type: ignore[arg-type]


def _install(machine: FakeMachine, order: InstallOrder, undo: Undo) -> list[str]:
    steps: list[str] = []
    facts = _facts(machine)
    install(machine, order, facts, lambda name, _: steps.append(name), undo)
    return steps


def test_a_bare_machine_gets_all_that_a_proxy_takes() -> None:
    machine = FakeMachine()
    steps = _install(machine, _order(packages=("python3-venv",)), Undo())
    assert steps == [
        "packages", "user", "directories", "environment", "settings", "enrolment", "service", "start",
    ]  # fmt: skip
    assert machine.links == {PLACES.current: f"releases/{WHEEL.release_id}"}
    assert machine.running
    assert machine.enabled
    assert "vmhaul" in machine.users
    assert machine.files[f"{PLACES.release(WHEEL.release_id)}/{WHEEL.name}"] == WHEEL.content
    assert any(f"{WHEEL.name}[san]" in call for call in machine.calls)
    assert any(call.startswith("env DEBIAN_FRONTEND=noninteractive apt-get") for call in machine.calls)


def test_the_token_stands_in_no_command_line() -> None:
    machine = FakeMachine()
    _install(machine, _order(), Undo())
    assert not any(TOKEN in call for call in machine.calls)
    assert machine.stdin.count(f"{TOKEN}\n".encode()) == 1


def test_every_step_can_be_done_twice() -> None:
    machine = FakeMachine()
    _install(machine, _order(), Undo())
    before = machine.state
    again = Undo()
    _install(machine, _order(), again)
    assert machine.state == before
    # What was there before is not undone by the second run; the service is stopped, as it is its own.
    assert [what for what, _ in again.done] == ["removing the service"]
    assert sum("pip install" in call for call in machine.calls) == 1


STEPS = [
    "apt-get -q -y install",
    "useradd",
    "mkdir -p /opt/vmhaul",
    "-m venv",
    "pip install",
    "import proxy_worker.app",
    "ln -sfn",
    "proxy.toml",
    "--join token",
    "vmhaul-proxy.service",
    "systemctl daemon-reload",
    "systemctl enable",
    "systemctl start",
]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_leaves_the_machine_as_it_was(step: str) -> None:
    machine = FakeMachine()
    before = machine.state
    undo = Undo()
    # proxy.toml is looked for before it is written: only the writing is to fail
    machine.fails = {("sh -c umask 077" if step == "proxy.toml" else step): "no space left on device"}
    with pytest.raises(StepError) as caught:
        _install(machine, _order(packages=("python3-venv",)), undo)
    assert "no space left on device" in caught.value.message
    assert "px1.example.com" in caught.value.message
    assert TOKEN not in caught.value.message
    machine.fails = {}
    assert undo.all(structlog.get_logger()) == []
    assert machine.state == before


def test_a_directory_that_was_there_can_be_tried_again() -> None:
    machine = FakeMachine()
    machine.directories |= {PLACES.data_dir, PLACES.install_dir}
    undo = Undo()
    machine.fails = {"systemctl start": "it does not start"}
    with pytest.raises(StepError):
        _install(machine, _order(), undo)
    machine.fails = {}
    assert undo.all(structlog.get_logger()) == []
    assert machine.has(PLACES.data_dir)
    # Else the next try would find a proxy there, of which nobody knows.
    assert not machine.has(f"{PLACES.data_dir}/enrolment.json")


def test_what_cannot_be_undone_is_said() -> None:
    machine = FakeMachine()
    undo = Undo()
    machine.fails = {"pip install": "no route", "rm -rf /opt/vmhaul": "read-only file system"}
    # clearing a broken try is a removal as well
    with pytest.raises(StepError):
        _install(machine, _order(), undo)
    left = undo.all(structlog.get_logger())
    assert len(left) == 1
    assert "read-only file system" in left[0]
    assert not machine.has(PLACES.data_dir)


def test_a_proxy_goes_with_all_that_was_made() -> None:
    machine = FakeMachine()
    before = machine.state
    _install(machine, _order(), Undo())
    for _ in range(2):
        uninstall(machine, PLACES, "systemd", lambda *_: None, keep_files=False)
        assert machine.state == before


def test_files_stay_when_they_are_to() -> None:
    machine = FakeMachine()
    _install(machine, _order(), Undo())
    uninstall(machine, PLACES, "systemd", lambda *_: None, keep_files=True)
    assert (machine.running, machine.enabled) == (False, False)
    assert machine.has(PLACES.data_dir)
    assert machine.has(PLACES.current)
    assert not machine.has(PLACES.unit_file)


def test_two_releases_stay() -> None:
    machine = FakeMachine()
    machine.directories |= {PLACES.release(f"1.{number}") for number in range(4)}
    forget_others(machine, PLACES, ["1.3", "1.2"])
    assert [machine.has(PLACES.release(f"1.{number}")) for number in range(4)] == [
        False, False, True, True,
    ]  # fmt: skip


def test_what_the_release_asks_for_is_checked_first(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="no extra nothing; there are: san"):
        Release(wheel=WHEEL, python="python3", extras=("nothing",)).check()
    with pytest.raises(InvalidError, match="holds no wheels"):
        Release(wheel=WHEEL, python="python3", wheelhouse=tmp_path).check()


def test_wheels_of_a_site_without_an_index_are_sent(tmp_path: Path) -> None:
    machine = FakeMachine()
    for name in ("a.whl", "b.whl"):
        (tmp_path / name).write_bytes(b"x")
    release = Release(wheel=WHEEL, python="python3", wheelhouse=tmp_path)
    _install(machine, _order(release=release), Undo())
    sent = [call for call in machine.calls if call.startswith("tar -x")]
    assert len(sent) == 2
    [pip] = [call for call in machine.calls if "pip install" in call]
    house = f"{PLACES.release(WHEEL.release_id)}/wheelhouse"
    assert f"--no-index --find-links {house}" in pip
    assert not machine.has(house)


# ---- the look


LOOKS = [
    ({}, (), ()),
    ({"python": None}, ("python3", "python3-venv"), ()),
    (
        {"python": None, "packages": "dnf", "family": "rhel fedora", "release": "9.4"},
        ("python3.11",),
        (),
    ),
    ({"libnfs": None, "packages": "dnf"}, (), ("libnfs",)),
    ({"libnfs": None}, (), ("libnfs14",)),
    ({"tool": "setpriv"}, ("passwd", "util-linux"), ()),
    ({"tool": "useradd\ntool=runuser"}, (), ()),
    ({"tool": "useradd\ntool=runuser", "init": "sysv"}, ("passwd", "util-linux"), ()),
]


@pytest.mark.parametrize(("found", "missing", "useful"), LOOKS)
def test_what_is_missing_is_named(
    found: dict[str, str | None], missing: tuple[str, ...], useful: tuple[str, ...]
) -> None:
    facts = _facts(FakeMachine(**found))
    assert (facts.missing, facts.useful, facts.problems) == (missing, useful, ())


THEN = [
    ({}, "/usr/bin/python3.11"),
    ({"python": None}, "python3"),
    ({"python": None, "packages": "dnf", "family": "rhel", "release": "9"}, "python3.11"),
    ({"python": None, "family": "ubuntu debian", "release": "22.04"}, "python3.11"),
]


@pytest.mark.parametrize(("found", "python"), THEN)
def test_which_python_there_is_when_the_packages_are(found: dict[str, str | None], python: str) -> None:
    assert _facts(FakeMachine(**found)).python_then == python


PROBLEMS = [
    ({"kernel": "FreeBSD"}, "needs Linux"),
    ({"taken": "yes"}, "there is a proxy already in /var/lib/vmhaul-proxy"),
    ({"service": "taken"}, "a service vmhaul-proxy already.*--service"),
    ({"releases": "taken"}, "another service runs from /opt/vmhaul.*--install-dir"),
    ({"free": "1024 /opt"}, "only 1 MiB are free"),
    ({"clock": "1400"}, r"clock differs by \+400 s"),
    (
        {"python": None, "packages": None},
        "lacks Python 3.11 or newer with venv, and has no package manager that is known",
    ),
    (
        {"tool": "setpriv", "packages": None},
        "^it lacks shadow-utils, util-linux, and has no package manager that is known",
    ),
    (
        {"python": None, "packages": "yum", "family": "rhel fedora", "release": "7.9"},
        "has no package of one; install one there and name it with --python",
    ),
]


@pytest.mark.parametrize(("found", "problem"), PROBLEMS)
def test_what_stands_against_a_proxy_is_said(found: dict[str, str | None], problem: str) -> None:
    [said] = _facts(FakeMachine(**found)).problems
    assert re.search(problem, said)


def test_services_of_other_proxies_are_seen(tmp_path: Path) -> None:
    """By the true script: a second proxy must not take the unit or the releases of the first."""
    machine = Shell(tmp_path)
    first = Places(install_dir="/opt/one", data_dir="/var/one", service="px-one")
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "px-one.service").write_text(systemd_unit(first))
    for places, words in (
        (Places(install_dir="/opt/two", data_dir="/var/two", service="px-one"), "a service px-one"),
        (Places(install_dir="/opt/one", data_dir="/var/two", service="px-two"), "runs from /opt/one"),
    ):
        assert any(words in said for said in look(machine, places, time.time).problems), words
    other = Places(install_dir="/opt/two", data_dir="/var/two", service="px-two")
    assert not any(
        "px-" in said or "/opt/" in said for said in look(machine, other, time.time).problems
    )


class Shell:
    """Runs commands on this machine as somebody who keeps everything to himself, with units and programs in a
    directory of the test's.
    """

    name = "here"

    def __init__(self, directory: Path) -> None:
        self._units = directory / "units"
        self._programs = directory / "programs"

    def run(self, words: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60) -> Ran:
        given = [word.replace("/etc/systemd/system", str(self._units)) for word in words]
        done = subprocess.run(
            given,
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            umask=0o077,
            env={**os.environ, "PATH": f"{self._programs}:{os.environ['PATH']}"},
        )
        return Ran(status=done.returncode, output=done.stdout.decode(), errors=done.stderr.decode())

    def program(self, name: str, script: str) -> str:
        self._programs.mkdir(exist_ok=True)
        file = self._programs / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return str(file)


NONE = "exit 1"
WITHOUT_VENV = """case "$2" in *ensurepip*) exit 1 ;; *) echo 3.14.1 ;; esac"""
WITH_VENV = "echo 3.12.3"


def test_a_newer_python_that_makes_no_environments_does_not_hide_one_that_does(tmp_path: Path) -> None:
    """As where somebody put a newer interpreter beside the distribution's own."""
    machine = Shell(tmp_path)
    for name in PYTHONS:
        machine.program(name, NONE)
    machine.program("python3.14", WITHOUT_VENV)
    facts = look(machine, PLACES, time.time)
    assert (facts.python, facts.python_version) == ("", "3.14.1")
    good = machine.program("python3.12", WITH_VENV)
    facts = look(machine, PLACES, time.time)
    assert (facts.python, facts.python_version) == (good, "3.12.3")


MAKING = """
case "$2" in
  venv) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && chmod 755 "$3/bin/python" ;;
  pip) mkdir -p "${0%/bin/python}/lib/more" && echo x >"${0%/bin/python}/lib/more/module.py" ;;
esac
"""


def test_the_worker_may_read_its_release_whatever_roots_umask_is(tmp_path: Path) -> None:
    machine = Shell(tmp_path)
    python = machine.program("python-of-the-test", MAKING)
    places = Places(install_dir=f"{tmp_path}/deep/inside/px", data_dir=f"{tmp_path}/data/px")
    build(machine, places, Release(wheel=WHEEL, python=python))
    made = [tmp_path / "deep", *(tmp_path / "deep").rglob("*")]
    assert any(path.name == "module.py" for path in made)
    closed = [str(path) for path in made if path.stat().st_mode & 0o004 == 0]
    assert closed == []


def test_a_package_that_is_only_useful_and_cannot_be_had_is_said() -> None:
    machine = FakeMachine(packages="dnf")
    machine.fails = {"install libnfs": "No match for argument: libnfs"}
    said: list[str] = []
    facts = _facts(machine)
    order = _order(optional_packages=("libnfs",))
    install(machine, order, facts, lambda name, text: said.append(f"{name}: {text}"), Undo())
    assert machine.running
    assert [one for one in said if "libnfs could not be installed" in one and "No match" in one]


def test_a_clock_is_read_in_whole_seconds() -> None:
    ticks = itertools.chain([999.2], itertools.repeat(999.4))
    facts = look(FakeMachine(clock="999"), PLACES, lambda: next(ticks))
    assert facts.clock_offset_s == 0
