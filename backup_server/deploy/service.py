"""The proxy as a service of its machine: systemd where it runs, else a script of the machine's init."""

from __future__ import annotations

from backup_server.deploy.machine import Machine, must, put
from backup_server.deploy.places import Places
from backup_server.deploy.said import in_one_line
from backup_server.deploy.unit import STOP_S, init_script, systemd_unit

SYSTEMD = "systemd"
OPENRC = "openrc"
LAST_LINES = "4"
_STOP_LIMIT_S = STOP_S + 30.0
_ENABLE = """
if command -v update-rc.d >/dev/null 2>&1; then update-rc.d "$1" defaults
elif command -v chkconfig >/dev/null 2>&1; then chkconfig --add "$1"
elif command -v rc-update >/dev/null 2>&1; then rc-update add "$1" default
fi
"""
_DISABLE = """
if command -v update-rc.d >/dev/null 2>&1; then update-rc.d -f "$1" remove
elif command -v chkconfig >/dev/null 2>&1; then chkconfig --del "$1"
elif command -v rc-update >/dev/null 2>&1; then rc-update del "$1" default
fi
"""


def write(machine: Machine, places: Places, init: str) -> None:
    """Unit or script, and its start with the machine."""
    if init == SYSTEMD:
        put(machine, places.unit_file, systemd_unit(places).encode())
        must(machine, ["systemctl", "daemon-reload"], "reading the new unit")
        must(machine, ["systemctl", "enable", places.service], "enabling the service")
        return
    put(machine, places.script, init_script(places, openrc=init == OPENRC).encode(), mode=0o755)
    must(machine, ["sh", "-c", _ENABLE, "sh", places.service], "enabling the service")


def start(machine: Machine, places: Places, init: str) -> None:
    words = _ask("start", places, init)
    advice = (
        f"see `journalctl -u {places.service}` there"
        if init == SYSTEMD
        else f"see {places.log_file} there"
    )
    must(machine, words, "starting the service", advice=advice)


def restart(machine: Machine, places: Places, init: str) -> None:
    stop(machine, places, init)
    start(machine, places, init)


def stop(machine: Machine, places: Places, init: str) -> None:
    must(machine, _ask("stop", places, init), "stopping the service", timeout_s=_STOP_LIMIT_S)


def remove(machine: Machine, places: Places, init: str) -> None:
    """Stopped and gone; nothing to do where it is gone already."""
    file = places.unit_file if init == SYSTEMD else places.script
    if not machine.run(["test", "-e", file]).ok:
        return
    stop(machine, places, init)
    if init == SYSTEMD:
        must(machine, ["systemctl", "disable", places.service], "disabling the service")
    else:
        must(machine, ["sh", "-c", _DISABLE, "sh", places.service], "disabling the service")
    must(machine, ["rm", "-f", file], f"removing {file}")
    if init == SYSTEMD:
        must(machine, ["systemctl", "daemon-reload"], "forgetting the unit")


def last_words(machine: Machine, places: Places, init: str) -> str:
    """The end of what its worker logged, for a message; empty: nothing."""
    if init == SYSTEMD:
        words = ["journalctl", "-q", "--no-pager", "-o", "cat", "-n", LAST_LINES, "-u", places.service]
    else:
        words = ["tail", "-n", LAST_LINES, places.log_file]
    ran = machine.run(words)
    return in_one_line(ran.output) if ran.ok else ""


def _ask(what: str, places: Places, init: str) -> list[str]:
    return ["systemctl", what, places.service] if init == SYSTEMD else [places.script, what]
