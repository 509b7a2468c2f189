"""The steps of a proxy on Windows: the same as over SSH, each of them a script."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from backup_server.deploy.install import InstallOrder, Report, Undo
from backup_server.deploy.look import CLOCK_LIMIT_S, FREE_FLOOR_BYTES, Facts
from backup_server.deploy.machine import COMMAND_S, StepError
from backup_server.deploy.releases import PIP_S, VENV_S, Release, wheels_in
from backup_server.deploy.said import VALUE_CHARS, Named, in_one_line, number
from backup_server.deploy.windows.places import WindowsPlaces, release_of
from backup_server.deploy.windows.winrm import WindowsMachine

INIT: Final = "task"
"""How the machine starts it: a scheduled task at the start of the system."""
PART_BYTES: Final = 256 << 10
"""Of a file in one call: with base64 twice around it, less than WinRM takes at once."""
_BUILD_FLOOR: Final = 14393
"""Windows Server 2016. Earlier ones have neither these cmdlets nor a Python that is new enough."""
_REMOVE_S: Final = 600.0
_SETTINGS: Final = "# Settings of this proxy; docs/reference/proxy-settings.md names them all. Restart the task after a change.\r\n"


def must(
    machine: WindowsMachine,
    script: str,
    what: str,
    *,
    advice: str = "",
    timeout_s: float = COMMAND_S,
    **parameters: Any,
) -> str:
    """Output of a script. StepError with `what` was to be done, and `advice`, when it fails."""
    ran = machine.call(script, parameters, timeout_s=timeout_s)
    if not ran.ok:
        tail = f"; {advice}" if advice else ""
        raise StepError(f"{machine.name}: {what} failed: {ran.why()}{tail}")
    return ran.output.strip()


# ---- look


def look(
    machine: WindowsMachine, places: WindowsPlaces, now_s: Callable[[], float], *, python: str = ""
) -> Facts:
    """Changes nothing. `python`: one to take instead of those that the machine knows."""
    before_s = now_s()
    text = must(
        machine,
        "look",
        "looking around",
        timeout_s=180,
        InstallDir=places.install_dir,
        DataDir=places.data_dir,
        Python=python,
        TaskName=places.service,
    )
    after_s = now_s()
    found = Named(text)
    one = found.one
    clock_s = number(one("clock"), before_s * 1000) / 1000
    # It was asked somewhere in between, and the look takes seconds: only what lies outside is off.
    offset_s = clock_s - min(max(clock_s, before_s), after_s)
    free = [number(value, -1) for value in found.all("free")]
    return Facts(
        system=one("system"),
        architecture=one("architecture"),
        init=INIT,
        packages="",
        python=one("python"),
        python_version=one("python_version"),
        free_bytes=int(min((size for size in free if size >= 0), default=0)),
        clock_offset_s=offset_s if abs(offset_s) > 1 else 0.0,
        libnfs=False,
        missing=(),
        useful=(),
        problems=tuple(_problems(one, places, free, offset_s, python)),
    )


def _problems(
    one: Callable[[str], str],
    places: WindowsPlaces,
    free: Sequence[float],
    offset_s: float,
    asked_python: str,
) -> list[str]:
    problems = []
    if number(one("build"), 0) < _BUILD_FLOOR:
        problems.append(
            f"it runs {one('system') or 'no known system'}: a proxy needs Windows Server 2016 or newer"
        )
    if one("architecture") != "AMD64":
        problems.append(
            f"its processor is {one('architecture') or 'unknown'}: a proxy on Windows needs 64-bit x86"
        )
    if not one("administrator"):
        problems.append(
            "the login has no rights of an administrator; a local user other than Administrator gets them over a network "
            "only with LocalAccountTokenFilterPolicy"
        )
    problems += _taken(one, places)
    if min(free, default=-1) < FREE_FLOOR_BYTES:
        problems.append(
            f"only {int(max(min(free, default=0), 0)) >> 20} MiB are free where it would be installed; "
            f"it takes {FREE_FLOOR_BYTES >> 20} MiB"
        )
    if abs(offset_s) > CLOCK_LIMIT_S:
        problems.append(
            f"its clock is off by {offset_s:+.0f} s, and orders would not be accepted there; let it follow a time server"
        )
    return problems + _python_problems(one, asked_python)


def _taken(one: Callable[[str], str], places: WindowsPlaces) -> list[str]:
    if one("foreign"):
        return [
            (
                f"{one('foreign')} was made by somebody who is no administrator, or leads elsewhere; look at what is in it and "
                "remove it, or name another directory with --proxy-data or --install-dir"
            )
        ]
    if one("taken"):
        return [
            (
                f"there is a proxy already in {places.data_dir}; remove that one first, or name other directories and "
                "another task with --proxy-data, --install-dir and --service"
            )
        ]
    if one("service"):
        return [
            (
                f"there is a task {places.service} already, of another proxy or left over; remove it first, or name "
                "another with --service, and other directories with --proxy-data and --install-dir"
            )
        ]
    if one("releases"):
        return [
            (
                f"another task runs from {places.install_dir}: upgrading or removing one proxy would take the release "
                "from the other; name another directory with --install-dir"
            )
        ]
    return []


def _python_problems(one: Callable[[str], str], asked: str) -> list[str]:
    """vmhaul installs no Python on Windows: there is no package manager on which one can count."""
    version = tuple(int(part) for part in re.findall(r"[0-9]{1,4}", one("python_version"))[:2])
    named = asked or "by the launcher py -3 or as python.exe on the path"
    if not one("python") or version < (3, 11):
        found = f" (it is {one('python_version')})" if version else ""
        return [
            (
                f"no Python 3.11 or newer is found {named}{found}; install the 64-bit one of python.org for all users, or "
                "name one with --python"
            )
        ]
    if one("python_bits") != "64":
        return [f"{one('python')} is not a 64-bit Python; install that one for all users"]
    if re.search(r"\\(Users|WindowsApps)\\", f"{one('python_base')}\\", re.IGNORECASE):
        return [
            (
                f"{one('python_base')} is the Python of one user or of the Store, which a task does not see; install the one "
                "of python.org for all users, or name one with --python"
            )
        ]
    return []


# ---- files


def put(machine: WindowsMachine, path: str, content: bytes) -> None:
    """A file, in parts; it has its name only when its SHA-256 is right."""
    part = f"{path}.part"
    for offset in range(0, max(len(content), 1), PART_BYTES):
        must(
            machine,
            "part",
            f"writing {path}",
            advice="look at free space and rights there",
            Path=part,
            Offset=offset,
            Content=content[offset : offset + PART_BYTES],
        )
    digest = hashlib.sha256(content).hexdigest().upper()
    must(machine, "keep_file", f"writing {path}", Path=part, Target=path, Sha256=digest)


def _exists(machine: WindowsMachine, path: str) -> bool:
    return must(machine, "exists", f"looking for {path}", Path=path) == "yes"


def _remove(machine: WindowsMachine, path: str) -> None:
    must(machine, "remove", f"removing {path}", timeout_s=_REMOVE_S, Path=path)


# ---- releases


def build(machine: WindowsMachine, places: WindowsPlaces, release: Release) -> str:
    """Id of the release, whole beside the others. What a broken try left is made anew."""
    release_id = release.wheel.release_id
    here = places.release(release_id)
    if _exists(machine, f"{here}\\complete"):
        return release_id
    _remove(machine, here)
    must(machine, "directory", f"making {here}", Path=here)
    wheel = f"{here}\\{release.wheel.name}"
    put(machine, wheel, release.wheel.content)
    must(
        machine,
        "environment",
        "making a virtual environment",
        timeout_s=VENV_S,
        Python=release.python,
        Directory=f"{here}\\venv",
    )
    _packages(machine, places, here, wheel, release)
    must(
        machine,
        "check",
        "loading the installed vmhaul",
        advice="its Visual C++ runtime may be missing, or its Python of another kind",
        timeout_s=180,
        Python=places.python(release_id),
    )
    put(machine, f"{here}\\complete", b"")
    return release_id


def _packages(
    machine: WindowsMachine, places: WindowsPlaces, here: str, wheel: str, release: Release
) -> None:
    extras = f"[{','.join(release.extras)}]" if release.extras else ""
    house = ""
    advice = "give the machine a package index (pip.ini), or the wheels with --wheelhouse"
    if release.wheelhouse is not None:
        house = f"{here}\\wheelhouse"
        must(machine, "directory", f"making {house}", Path=house)
        for path in wheels_in(release.wheelhouse):
            put(machine, f"{house}\\{path.name}", path.read_bytes())
        advice = (
            "the wheelhouse must hold every requirement for the machine's Python, built for Windows"
        )
    must(
        machine,
        "packages",
        "installing vmhaul",
        advice=advice,
        timeout_s=PIP_S + 60,
        Python=places.python(release.wheel.release_id),
        Wheel=f"{wheel}{extras}",
        Wheelhouse=house,
        TimeoutSeconds=int(PIP_S),
    )
    if house:
        _remove(machine, house)


def current(machine: WindowsMachine, places: WindowsPlaces) -> str:
    """Id of the release that the task starts; empty: none."""
    return release_of(
        must(machine, "current", "looking at the task", TaskName=places.service)[:VALUE_CHARS]
    )


def forget_others(machine: WindowsMachine, places: WindowsPlaces, keep: Sequence[str]) -> None:
    """Remove all releases but these."""
    must(
        machine,
        "forget_others",
        "removing old releases",
        timeout_s=_REMOVE_S,
        Path=places.releases,
        Keep=[one for one in keep if one],
    )


# ---- the task


def start(machine: WindowsMachine, places: WindowsPlaces, init: str) -> None:
    """Also one that runs."""
    del init
    must(machine, "start", f"starting the task {places.service}", TaskName=places.service)


def change_to(machine: WindowsMachine, places: WindowsPlaces, init: str, release_id: str) -> None:
    """Stop it, let its task start that release from now on, start it."""
    must(machine, "stop", f"stopping the task {places.service}", TaskName=places.service)
    _register(machine, places, release_id)
    start(machine, places, init)


def last_words(machine: WindowsMachine, places: WindowsPlaces, init: str) -> str:
    """The end of what its worker logged, for a message; empty: nothing."""
    del init
    path = f"{places.data_dir}\\proxy.log"
    return in_one_line(must(machine, "last_words", "reading its log", Path=path))


def _register(machine: WindowsMachine, places: WindowsPlaces, release_id: str) -> None:
    must(
        machine,
        "register",
        f"making the task {places.service}",
        TaskName=places.service,
        Python=places.python(release_id),
        DataDir=places.data_dir,
    )


def _unregister(machine: WindowsMachine, places: WindowsPlaces) -> None:
    must(machine, "unregister", f"removing the task {places.service}", TaskName=places.service)


# ---- the whole


def install(
    machine: WindowsMachine, order: InstallOrder, facts: Facts, report: Report, undo: Undo
) -> str:
    """Id of the release that runs now. `undo` holds what was made, also when this raises StepError."""
    places = order.places
    if not isinstance(places, WindowsPlaces):
        raise StepError(f"{machine.name} runs Windows, and the places are not of Windows")
    report("directories", f"{places.install_dir} and {places.data_dir}")
    _directories(machine, places, undo)
    report("environment", f"vmhaul {order.release.wheel.version} in an environment of its own")
    release_id = build(machine, places, order.release)
    report("settings", f"{places.data_dir}\\proxy.toml")
    settings = f"{places.data_dir}\\proxy.toml"
    if not _exists(machine, settings):
        put(machine, settings, _SETTINGS.encode())
    report("enrolment", "exchanging keys with the server")
    _enrol(machine, places, release_id, order, undo)
    report("service", f"scheduled task {places.service}")
    undo.later("removing the task", partial(_unregister, machine, places))
    _register(machine, places, release_id)
    report("start", "starting it")
    start(machine, places, facts.init)
    return release_id


def uninstall(
    machine: WindowsMachine, places: WindowsPlaces, init: str, report: Report, *, keep_files: bool
) -> None:
    """Task, environment and data; with `keep_files` the task alone. Each step may find nothing."""
    del init
    report("service", f"stopping and removing the task {places.service}")
    _unregister(machine, places)
    if keep_files:
        return
    report("directories", f"removing {places.install_dir} and {places.data_dir}")
    _remove(machine, places.install_dir)
    _remove(machine, places.data_dir)


def _directories(machine: WindowsMachine, places: WindowsPlaces, undo: Undo) -> None:
    for path in (places.install_dir, places.data_dir):
        if not _exists(machine, path):
            undo.later(f"removing {path}", partial(_remove, machine, path))
    must(machine, "directory", f"making {places.releases}", Path=places.releases)
    _close(machine, places)


def _close(machine: WindowsMachine, places: WindowsPlaces) -> None:
    must(
        machine,
        "closed_directory",
        f"closing {places.data_dir} to others",
        Path=places.data_dir,
        TaskName=places.service,
    )


def _enrol(
    machine: WindowsMachine, places: WindowsPlaces, release_id: str, order: InstallOrder, undo: Undo
) -> None:
    enrolment = f"{places.data_dir}\\enrolment.json"
    if not _exists(machine, enrolment):
        # In a directory that was there before, the next try would find a proxy of which nobody knows.
        undo.later(f"removing {enrolment}", partial(_remove, machine, enrolment))
    must(
        machine,
        "enrol",
        "joining the server",
        advice="the machine must reach the server's door for proxies and its broker: look at addresses and firewalls",
        timeout_s=240,
        Python=places.python(release_id),
        DataDir=places.data_dir,
        Token=order.token.reveal(),
    )
    # Joining closed it to all but its owner, the system and the administrators: the task has to get in.
    _close(machine, places)
