"""Which packages of a distribution bring what a proxy takes.

| distribution | Python 3.11 or newer | libnfs 4 or 5, for direct NFS |
|---|---|---|
| Debian 12, 13; Ubuntu from 23.04 on | `python3`, `python3-venv` | `libnfs13` or `libnfs14`, where there is one |
| Ubuntu 22.04 (its own is 3.10) | `python3.11`, `python3.11-venv`, in universe | `libnfs13` |
| Debian 11, Ubuntu 20.04 and older | none | `libnfs13` |
| Red Hat's 8 (from 8.8 on) and 9 (from 9.2 on), whose own are 3.6 and 3.9; Amazon Linux 2023 | `python3.11` | `libnfs`, of EPEL |
| Red Hat's 10 | `python3` (3.12) | `libnfs`, of EPEL |
| Fedora | `python3` | `libnfs` up to 41; 6.0 from 42 on, which the mover does not load |

Sources: the distributions' package lists and manuals. venv and ensurepip are in Red Hat's interpreters themselves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from backup_server.deploy.machine import Machine

NEW_ENOUGH: Final = (3, 11)
_OWN_PYTHONS: Final = {
    ("debian", 10): (3, 7),
    ("debian", 11): (3, 9),
    ("ubuntu", 18): (3, 6),
    ("ubuntu", 20): (3, 8),
    ("ubuntu", 22): (3, 10),
}
"""Of those that are too old, for machines that have not fetched their package lists yet."""
_RED_HAT: Final = frozenset({"rhel", "centos", "rocky", "almalinux", "ol"})
_RED_HAT_FIRST: Final = 8
_RED_HAT_OWN: Final = 10
_AMAZON_FIRST: Final = 2023
_FEDORA_NFS_LAST: Final = 41


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """As `/etc/os-release` says it."""

    name: str
    """ID: debian, ubuntu, rhel, rocky..."""
    like: frozenset[str]
    """ID_LIKE."""
    major: int
    """Of VERSION_ID; 0: none, as of a rolling release."""

    @classmethod
    def of(cls, family: str, release: str) -> Distribution:
        """`family`: ID and ID_LIKE, separated by blanks; `release`: VERSION_ID."""
        name, *like = family.split() or [""]
        digits = re.match(r"[0-9]{1,6}", release)
        return cls(name=name, like=frozenset(like), major=int(digits[0]) if digits else 0)


def python_packages(machine: Machine, manager: str, distribution: Distribution) -> list[str]:
    """The distribution's own Python where that is new enough, else the oldest that is, beside it. Empty: it has none."""
    if manager == "apt-get":
        return _debian_python(machine, distribution)
    return _red_hat_python(distribution)


def nfs_packages(machine: Machine, manager: str, distribution: Distribution) -> tuple[str, ...]:
    """The library of a version that the mover loads. Empty: it has none."""
    if manager == "apt-get":
        for name in ("libnfs14", "libnfs13"):
            if machine.run(["apt-cache", "show", "--no-all-versions", name]).ok:
                return (name,)
        return ()
    if distribution.name == "fedora" and distribution.major > _FEDORA_NFS_LAST:
        return ()
    return ("libnfs",) if manager else ()


def _debian_python(machine: Machine, distribution: Distribution) -> list[str]:
    key = (distribution.name, distribution.major)
    own = _candidate(machine, "python3") or _OWN_PYTHONS.get(key, NEW_ENOUGH)
    if own >= NEW_ENOUGH:
        return ["python3", "python3-venv"]
    if _candidate(machine, "python3.11") or key == ("ubuntu", 22):
        return ["python3.11", "python3.11-venv"]
    return []


def _candidate(machine: Machine, package: str) -> tuple[int, int] | None:
    """Version that would be installed; None: not there, or the package lists were not fetched yet."""
    policy = machine.run(["apt-cache", "policy", package]).output
    version = re.search(r"Candidate: (?:[0-9]+:)?([0-9]{1,4})\.([0-9]{1,4})", policy)
    return (int(version[1]), int(version[2])) if version else None


def _red_hat_python(distribution: Distribution) -> list[str]:
    name, major = distribution.name, distribution.major
    red_hat = name != "amzn" and (name in _RED_HAT or "rhel" in distribution.like)
    if name == "fedora" or (red_hat and major >= _RED_HAT_OWN):
        return ["python3"]
    first = _RED_HAT_FIRST if red_hat else _AMAZON_FIRST if name == "amzn" else 0
    return [] if 0 < major < first else ["python3.11"]
