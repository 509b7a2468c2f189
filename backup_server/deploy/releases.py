"""Releases on a machine: environments beside each other, and the one that `current` leads to."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backup_server.deploy.machine import Machine, for_all, must, put
from backup_server.deploy.places import Places
from backup_server.deploy.wheel import Wheel
from backup_server.errors import InvalidError

PIP_S: Final = 3600.0
"""Of a slow line to a package index."""
VENV_S: Final = 600.0
_LINK: Final = 'ln -sfn "$1" "$2.new" && mv -T "$2.new" "$2"'
_OTHERS: Final = (
    'cd "$1" && for one in *; do case "$one" in "$2"|"$3"|"*") ;; *) rm -rf -- "$one" ;; esac; done'
)
_CHECK: Final = "import proxy_worker.app, proxy_worker.mover_process"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What is to be installed."""

    wheel: Wheel
    python: str
    """On the machine."""
    extras: tuple[str, ...] = ()
    wheelhouse: Path | None = None
    """Directory of this machine with the wheels of all requirements; None: the machine's package index."""

    def check(self) -> None:
        """InvalidError for extras that do not exist, or a wheelhouse without wheels."""
        unknown = sorted(set(self.extras) - self.wheel.extras)
        if unknown:
            known = ", ".join(sorted(self.wheel.extras))
            raise InvalidError(
                f"vmhaul has no extra {', '.join(unknown)}; there are: {known}",
                details={"extras": "unknown"},
            )
        if self.wheelhouse is not None and not wheels_in(self.wheelhouse):
            raise InvalidError(
                f"{self.wheelhouse} on the server's machine holds no wheels; fill it with "
                "`pip download --only-binary :all: --dest DIR vmhaul` on a machine like the proxy's",
                details={"wheelhouse": "holds no wheels"},
            )


def wheels_in(directory: Path) -> list[Path]:
    return (
        sorted(path for path in directory.glob("*.whl") if path.is_file()) if directory.is_dir() else []
    )


def build(machine: Machine, places: Places, release: Release) -> str:
    """Id of the release, whole beside the others. What a broken try left is made anew."""
    release_id = release.wheel.release_id
    here = places.release(release_id)
    if machine.run(["test", "-e", f"{here}/complete"]).ok:
        return release_id
    must(machine, ["rm", "-rf", here], f"clearing {here}")
    must(machine, for_all(["mkdir", "-p", here]), f"making {here}")
    wheel = f"{here}/{release.wheel.name}"
    put(machine, wheel, release.wheel.content)
    must(
        machine,
        for_all([release.python, "-m", "venv", f"{here}/venv"]),
        "making a virtual environment",
        advice="install the package that has Python's venv (python3-venv on Debian and Ubuntu)",
        timeout_s=VENV_S,
    )
    _pip(machine, here, wheel, release)
    must(
        machine,
        [f"{here}/venv/bin/python", "-c", _CHECK],
        "loading the installed vmhaul",
        advice="the machine's system or processor may be too old for its requirements",
    )
    put(machine, f"{here}/complete", b"")
    return release_id


def _pip(machine: Machine, here: str, wheel: str, release: Release) -> None:
    extras = f"[{','.join(release.extras)}]" if release.extras else ""
    words = [f"{here}/venv/bin/python", "-m", "pip", "install", "--no-input", "--quiet"]
    words += ["--disable-pip-version-check", "--no-warn-script-location"]
    advice = "give the machine a package index (pip.conf), or the wheels with --wheelhouse"
    if release.wheelhouse is not None:
        house = f"{here}/wheelhouse"
        _send(machine, house, wheels_in(release.wheelhouse))
        words += ["--no-index", "--find-links", house]
        advice = "the wheelhouse must hold every requirement for the machine's Python and processor"
    words.append(f"{wheel}{extras}")
    must(machine, for_all(words), "installing vmhaul", advice=advice, timeout_s=PIP_S)
    if release.wheelhouse is not None:
        must(machine, ["rm", "-rf", f"{here}/wheelhouse"], "clearing the wheelhouse")


def _send(machine: Machine, directory: str, wheels: Sequence[Path]) -> None:
    """One after the other: a wheelhouse is larger than memory should be asked for."""
    must(machine, ["mkdir", "-p", directory], f"making {directory}")
    for path in wheels:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(path, arcname=path.name)
        must(
            machine,
            ["tar", "-x", "-f", "-", "-C", directory, "--no-same-owner"],
            f"sending {path.name}",
            stdin=packed.getvalue(),
            timeout_s=600,
        )


def current(machine: Machine, places: Places) -> str:
    """Id of the release that runs, or runs from the next start on; empty: none."""
    shown = machine.run(["readlink", places.current]).output.strip()
    return shown.rpartition("/")[2]


def switch(machine: Machine, places: Places, release_id: str) -> None:
    """In one step: a start at any moment finds the old one or the new one."""
    must(
        machine,
        ["sh", "-c", _LINK, "sh", f"releases/{release_id}", places.current],
        f"making {release_id} the current release",
    )


def forget_others(machine: Machine, places: Places, keep: Sequence[str]) -> None:
    """Remove all releases but at most two."""
    first, second = [*keep, "", ""][:2]
    must(
        machine,
        ["sh", "-c", _OTHERS, "sh", places.releases, first, second],
        "removing old releases",
        timeout_s=300,
    )
