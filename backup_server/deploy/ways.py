"""What putting a proxy on a machine is made of: over SSH on Linux, over WinRM on Windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

from backup_server.deploy import install, releases, service, ssh
from backup_server.deploy.install import InstallOrder, Report, Undo
from backup_server.deploy.look import Facts, look
from backup_server.deploy.machine import Machine
from backup_server.deploy.places import AnyPlaces, Places
from backup_server.deploy.releases import Release
from backup_server.deploy.ssh import Login, SshAddress
from backup_server.deploy.windows import steps, winrm
from backup_server.deploy.windows.places import WindowsPlaces

LINUX: Final = "linux"
WINDOWS: Final = "windows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Functions over a machine of one kind, and the places on it. They raise what `deploy.machine` says."""

    kind: str
    port: int
    connect: Callable[[SshAddress, Login], AbstractContextManager[Any]]
    identity_of: Callable[[str, int], str]
    """What is shown at host and port, for a person to confirm: "SHA256:..."."""
    places_of: Callable[[Mapping[str, Any]], AnyPlaces]
    look: Callable[..., Facts]
    install: Callable[[Any, InstallOrder, Facts, Report, Undo], str]
    uninstall: Callable[..., None]
    current: Callable[[Any, Any], str]
    build: Callable[[Any, Any, Release], str]
    change_to: Callable[[Any, Any, str, str], None]
    """machine, places, init, release: that one runs from now on."""
    start: Callable[[Any, Any, str], None]
    forget_others: Callable[[Any, Any, Sequence[str]], None]
    last_words: Callable[[Any, Any, str], str]
    """machine, places, init: the end of what the worker logged."""


def _change_to(machine: Machine, places: Places, init: str, release_id: str) -> None:
    releases.switch(machine, places, release_id)
    service.write(machine, places, init)
    service.restart(machine, places, init)


OVER_SSH: Final = Way(
    kind=LINUX,
    port=ssh.SSH_PORT,
    connect=ssh.connected,
    identity_of=ssh.host_key_of,
    places_of=Places.of,
    look=look,
    install=install.install,
    uninstall=install.uninstall,
    current=releases.current,
    build=releases.build,
    change_to=_change_to,
    start=service.start,
    forget_others=releases.forget_others,
    last_words=service.last_words,
)
OVER_WINRM: Final = Way(
    kind=WINDOWS,
    port=winrm.WINRM_PORT,
    connect=winrm.connected,
    identity_of=winrm.thumbprint_of,
    places_of=WindowsPlaces.of,
    look=steps.look,
    install=steps.install,
    uninstall=steps.uninstall,
    current=steps.current,
    build=steps.build,
    change_to=steps.change_to,
    start=steps.start,
    forget_others=steps.forget_others,
    last_words=steps.last_words,
)


def way_of(kind: str) -> Way:
    """ValueError for a kind that does not exist."""
    for way in (OVER_SSH, OVER_WINRM):
        if way.kind == kind:
            return way
    raise ValueError("must be linux (over SSH) or windows (over WinRM)")
