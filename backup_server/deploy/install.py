"""Installing a proxy: steps that can each be done twice, and undone as far as this run did them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from backup_server.deploy import releases, service
from backup_server.deploy.look import Facts
from backup_server.deploy.machine import Machine, StepError, for_all, must, put
from backup_server.deploy.places import Places
from backup_server.deploy.releases import Release
from backup_server.errors import VmhaulError
from transports.vsphere.model import Secret

PACKAGES_S: Final = 1800.0
_SETTINGS: Final = """\
# Settings of this proxy; docs/reference/proxy-settings.md names them all. Restart the service after a change.
"""

Report = Callable[[str, str], None]
"""Told the name of a step when it begins, and a text for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallOrder:
    places: Any
    """Of the machine's kind: `Places` on Linux, `WindowsPlaces` on Windows."""
    release: Release
    packages: tuple[str, ...]
    """Of the system, agreed to by a person."""
    optional_packages: tuple[str, ...]
    """The same; the proxy is installed without them when they cannot be had."""
    token: Secret = field(repr=False)
    """The join token. It goes to a standard input."""


@dataclass(slots=True)
class Undo:
    """What this run did, last first."""

    done: list[tuple[str, Callable[[], object]]] = field(default_factory=list)

    used: bool = False
    """Whether anything was done at all."""

    def later(self, what: str, action: Callable[[], object]) -> None:
        self.used = True
        self.done.append((what, action))

    def all(self, log: Any) -> list[str]:
        """What could not be undone, in words."""
        left = []
        for what, action in reversed(self.done):
            try:
                action()
            except VmhaulError as error:
                log.warning("deploy.not-undone", text=what, error=error.message)
                left.append(f"{what}: {error.message}")
        self.done.clear()
        return left


def install(machine: Machine, order: InstallOrder, facts: Facts, report: Report, undo: Undo) -> str:
    """Id of the release that runs now. `undo` holds what was made, also when this raises StepError."""
    places: Places = order.places
    if order.packages or order.optional_packages:
        report("packages", f"system packages: {' '.join((*order.packages, *order.optional_packages))}")
        _packages(machine, facts, order, report)
    report("user", f"user {places.user}")
    _user(machine, places, undo)
    report("directories", f"{places.install_dir} and {places.data_dir}")
    _directories(machine, places, undo)
    report("environment", f"vmhaul {order.release.wheel.version} in an environment of its own")
    release_id = releases.build(machine, places, order.release)
    releases.switch(machine, places, release_id)
    report("settings", f"{places.data_dir}/proxy.toml")
    _settings(machine, places)
    report("enrolment", "exchanging keys with the server")
    enrolment = f"{places.data_dir}/enrolment.json"
    if not machine.run(["test", "-e", enrolment]).ok:
        # In a directory that was there before, the next try would find a proxy of which nobody knows.
        undo.later(f"removing {enrolment}", partial(_remove_directory, machine, enrolment))
    _enrol(machine, order)
    report("service", f"service {places.service} ({facts.init})")
    undo.later("removing the service", lambda: service.remove(machine, places, facts.init))
    service.write(machine, places, facts.init)
    report("start", "starting it")
    service.start(machine, places, facts.init)
    return release_id


def uninstall(machine: Machine, places: Places, init: str, report: Report, *, keep_files: bool) -> None:
    """Service, environment, data and user; with `keep_files` the service alone. Each step may find nothing."""
    report("service", f"stopping and removing the service {places.service}")
    service.remove(machine, places, init)
    if keep_files:
        return
    report("directories", f"removing {places.install_dir} and {places.data_dir}")
    must(
        machine,
        ["rm", "-rf", places.install_dir, places.data_dir],
        "removing its directories",
        timeout_s=600,
    )
    report("user", f"removing the user {places.user}")
    _remove_user(machine, places)


def _packages(machine: Machine, facts: Facts, order: InstallOrder, report: Report) -> None:
    environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
    if facts.packages == "apt-get":
        machine.run([*environment, "apt-get", "-q", "update"], timeout_s=PACKAGES_S)
    install_words = [*environment, facts.packages, "-q", "-y", "install"]
    if facts.packages == "apt-get":
        install_words.append("--no-install-recommends")
    if order.packages:
        must(
            machine,
            [*install_words, *order.packages],
            f"installing {' '.join(order.packages)}",
            advice="install them by hand, or give the machine a package mirror, and try again",
            timeout_s=PACKAGES_S,
        )
    for name in order.optional_packages:
        ran = machine.run([*install_words, name], timeout_s=PACKAGES_S)
        if not ran.ok:
            report("packages", f"{name} could not be installed; the proxy does without it: {ran.why()}")


def _user(machine: Machine, places: Places, undo: Undo) -> None:
    if not machine.run(["id", "-u", places.user]).ok:
        words = ["useradd", "--system", "--user-group", "--no-create-home"]
        words += ["--home-dir", places.data_dir, "--shell", "/usr/sbin/nologin", places.user]
        undo.later(f"removing the user {places.user}", lambda: _remove_user(machine, places))
        must(machine, words, f"making the user {places.user}")
    if machine.run(["getent", "group", "disk"]).ok:
        must(machine, ["usermod", "-a", "-G", "disk", places.user], "letting it read block devices")


def _remove_user(machine: Machine, places: Places) -> None:
    """It stays where another proxy of the machine still works as this user: userdel refuses then."""
    machine.run(["userdel", places.user])


def _directories(machine: Machine, places: Places, undo: Undo) -> None:
    for path in (places.install_dir, places.data_dir):
        if not machine.run(["test", "-d", path]).ok:
            undo.later(f"removing {path}", partial(_remove_directory, machine, path))
            must(machine, for_all(["mkdir", "-p", path]), f"making {path}")
    must(machine, for_all(["mkdir", "-p", places.releases]), f"making {places.releases}")
    must(machine, ["chown", f"{places.user}:{places.user}", places.data_dir], "giving it its data")
    must(machine, ["chmod", "700", places.data_dir], "closing its data to others")


def _remove_directory(machine: Machine, path: str) -> None:
    must(machine, ["rm", "-rf", path], f"removing {path}", timeout_s=600)


def _settings(machine: Machine, places: Places) -> None:
    path = f"{places.data_dir}/proxy.toml"
    if not machine.run(["test", "-e", path]).ok:
        put(machine, path, _SETTINGS.encode())


def _enrol(machine: Machine, order: InstallOrder) -> None:
    places = order.places
    words = ["runuser", "-u", places.user, "--", places.python, "-m", "proxy_worker"]
    words += ["--data", places.data_dir, "--join", "token"]
    ran = machine.run(words, stdin=order.token.reveal().encode() + b"\n", timeout_s=180)
    if not ran.ok:
        raise StepError(
            f"{machine.name} could not join the server: {ran.why()}; the machine must reach the server's door for "
            "proxies and its broker: look at addresses and firewalls"
        )
