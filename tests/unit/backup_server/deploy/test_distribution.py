from __future__ import annotations

from collections.abc import Sequence

import pytest

from backup_server.deploy.distribution import Distribution, nfs_packages, python_packages
from backup_server.deploy.machine import Ran

BESIDE = ["python3.11", "python3.11-venv"]
OWN = ["python3", "python3-venv"]


class Apt:
    """What a machine's package lists say: candidates by package."""

    name = "here"

    def __init__(self, **candidates: str) -> None:
        self._candidates = {name.replace("_", "."): found for name, found in candidates.items()}

    def run(self, words: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60) -> Ran:
        del stdin, timeout_s
        found = self._candidates.get(words[-1])
        if words[1] == "policy":
            version = found or "(none)"
            text = f"{words[-1]}:\n  Installed: (none)\n  Candidate: {version}\n  Version table:\n     9.9 100\n"
            return Ran(status=0, output=text, errors="")
        return Ran(status=0 if found else 100, output="", errors="")


APT = [
    ("debian", "12", Apt(python3="3.11.2-1+b1"), OWN),
    ("debian", "13", Apt(python3="3.13.5-1"), OWN),
    ("ubuntu debian", "24.04", Apt(python3="3.12.3-0ubuntu2"), OWN),
    ("ubuntu debian", "22.04", Apt(python3="3.10.6-1~22.04", python3_11="3.11.0~rc1-1~22.04"), BESIDE),
    ("linuxmint ubuntu debian", "21", Apt(python3="3.10.6-1~22.04", python3_11="3.11.0~rc1"), BESIDE),
    ("ubuntu debian", "20.04", Apt(python3="3.8.2-0ubuntu2"), []),
    ("debian", "11", Apt(python3="3.9.2-3"), []),
    # Package lists that were never fetched: bare containers, first boots.
    ("debian", "12", Apt(), OWN),
    ("ubuntu debian", "22.04", Apt(), BESIDE),
    ("ubuntu debian", "22.04", Apt(python3="3.10.6-1~22.04"), BESIDE),
    ("debian", "11", Apt(), []),
    ("debian", "", Apt(), OWN),
]


@pytest.mark.parametrize(("family", "release", "apt", "packages"), APT)
def test_debian_and_its_children_get_their_own_or_one_beside(
    family: str, release: str, apt: Apt, packages: list[str]
) -> None:
    assert python_packages(apt, "apt-get", Distribution.of(family, release)) == packages


RPM = [
    ("rhel fedora", "8.10", ["python3.11"]),
    ("rhel fedora", "9.4", ["python3.11"]),
    ("rocky rhel centos fedora", "9.5", ["python3.11"]),
    ("ol fedora", "9.4", ["python3.11"]),
    ("rhel fedora", "10.0", ["python3"]),
    ("almalinux rhel centos fedora", "10.1", ["python3"]),
    ("ol fedora", "10.0", ["python3"]),
    ("fedora", "43", ["python3"]),
    ("amzn fedora", "2023", ["python3.11"]),
    ("amzn centos rhel fedora", "2", []),
    ("centos rhel fedora", "7", []),
]


@pytest.mark.parametrize(("family", "release", "packages"), RPM)
def test_red_hats_family_gets_what_its_release_has(
    family: str, release: str, packages: list[str]
) -> None:
    assert python_packages(Apt(), "dnf", Distribution.of(family, release)) == packages


NFS = [
    ("apt-get", "debian", "12", Apt(libnfs13="4.0.0-1"), ("libnfs13",)),
    ("apt-get", "debian", "13", Apt(libnfs14="5.0.2-1"), ("libnfs14",)),
    ("apt-get", "ubuntu debian", "26.04", Apt(libnfs16="6.0.2-1"), ()),
    ("dnf", "rhel fedora", "9.4", Apt(), ("libnfs",)),
    ("dnf", "fedora", "41", Apt(), ("libnfs",)),
    ("dnf", "fedora", "42", Apt(), ()),
    ("", "", "", Apt(), ()),
]


@pytest.mark.parametrize(("manager", "family", "release", "apt", "packages"), NFS)
def test_only_a_library_that_the_mover_loads_is_offered(
    manager: str, family: str, release: str, apt: Apt, packages: tuple[str, ...]
) -> None:
    assert nfs_packages(apt, manager, Distribution.of(family, release)) == packages
