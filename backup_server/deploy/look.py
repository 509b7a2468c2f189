"""What a machine is, before anything is changed on it, and what stands against a proxy there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from backup_server.deploy.distribution import Distribution, nfs_packages, python_packages
from backup_server.deploy.machine import Machine, must
from backup_server.deploy.places import Places
from backup_server.deploy.said import Named, number

PYTHONS: Final = ("python3.14", "python3.13", "python3.12", "python3.11", "python3")
FREE_FLOOR_BYTES: Final = 1 << 30
"""An environment is some 350 MB; two stand beside each other in an upgrade."""
CLOCK_LIMIT_S: Final = 60.0
"""Half of what orders bear: a clock that is off so far now is further off some day."""

# Each line it prints is NAME=VALUE. $1: install directory, $2: data directory, $3: a Python to look at first, $4: service.
_SCRIPT: Final = (
    r"""
if [ -r /etc/os-release ]; then . /etc/os-release; fi
echo "system=${PRETTY_NAME:-unknown}"; echo "family=${ID:-} ${ID_LIKE:-}"; echo "release=${VERSION_ID:-}"
echo "kernel=$(uname -s)"; echo "architecture=$(uname -m)"; echo "clock=$(date +%s)"
if [ -d /run/systemd/system ]; then echo init=systemd
elif [ -x /sbin/openrc-run ]; then echo init=openrc
else echo init=sysv; fi
for manager in apt-get dnf yum; do
  if command -v "$manager" >/dev/null 2>&1; then echo "packages=$manager"; break; fi
done
bare=
for python in ${3:-"""
    + " ".join(PYTHONS)
    + r"""}; do
  version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3]) if sys.version_info >= (3, 11) else sys.exit(1)' 2>/dev/null) || continue
  bare=${bare:-$version}
  "$python" -c 'import venv, ensurepip' 2>/dev/null || continue
  echo "python=$(command -v "$python")"; echo "python_version=$version"
  bare=
  break
done
if [ -n "$bare" ]; then echo "python_version=$bare"; fi
for directory in "$1" "$2"; do
  while [ ! -d "$directory" ]; do directory=$(dirname "$directory"); done
  echo "free=$(df -Pk "$directory" | awk 'NR == 2 { print $4 }') $directory"
done
if [ -e "$2/enrolment.json" ]; then echo taken=yes; fi
if [ -e "/etc/systemd/system/$4.service" ] || [ -e "/etc/init.d/$4" ]; then echo service=taken; fi
if grep -qsF "$1/current/venv/" /etc/systemd/system/*.service /etc/init.d/*; then echo releases=taken; fi
for tool in useradd runuser setpriv; do
  command -v "$tool" >/dev/null 2>&1 && echo "tool=$tool"
done
# Those versions that the mover loads (transports.direct_nfs.library); 6 is libnfs.so.16 and is not.
for file in /usr/lib/*/libnfs.so.1[34] /usr/lib64/libnfs.so.1[34]; do
  if [ -e "$file" ]; then echo libnfs=yes; break; fi
done
exit 0
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Of one look. Sizes in bytes, seconds for times."""

    system: str
    architecture: str
    init: str
    """systemd, openrc or sysv."""
    packages: str
    """Its package manager: apt-get, dnf, yum; empty: none that is known."""
    python: str
    """Path of the newest that is new enough and can make virtual environments; empty: there is none."""
    python_version: str
    """Its version; where there is none, that of one that is only new enough."""
    free_bytes: int
    """In the directory with the least."""
    clock_offset_s: float
    libnfs: bool
    missing: tuple[str, ...]
    """Packages without which no proxy can be installed."""
    useful: tuple[str, ...]
    """Packages that one more transport mode takes."""
    problems: tuple[str, ...]
    """Why no proxy can be installed even with those packages; each says what to do."""

    @property
    def python_then(self) -> str:
        """The Python that there is when the missing packages are installed; their names say which."""
        versioned = [name for name in self.missing if name.startswith("python3.") and "-" not in name]
        return self.python or (versioned[0] if versioned else "python3")

    def shape(self) -> dict[str, object]:
        return {
            "system": self.system,
            "architecture": self.architecture,
            "init": self.init,
            "package_manager": self.packages,
            "python": self.python,
            "python_version": self.python_version,
            "free_bytes": self.free_bytes,
            "clock_offset_s": round(self.clock_offset_s, 1),
            "missing_packages": list(self.missing),
            "useful_packages": list(self.useful),
            "problems": list(self.problems),
        }


def look(machine: Machine, places: Places, now_s: Callable[[], float], *, python: str = "") -> Facts:
    """Changes nothing. `python`: one to take instead of those on the path."""
    words = ["sh", "-c", _SCRIPT, "sh", places.install_dir, places.data_dir, python, places.service]
    before_s = now_s()
    text = must(machine, words, "looking around")
    after_s = now_s()
    found = Named(text)
    one = found.one
    clock = number(one("clock"), before_s)
    # date(1) counts whole seconds: half of one is the best guess of what it cut off.
    offset_s = clock + 0.5 - (before_s + after_s) / 2
    free = [number(entry.partition(" ")[0], -1) * 1024 for entry in found.all("free")]
    facts = Facts(
        system=one("system"),
        architecture=one("architecture"),
        init=one("init"),
        packages=one("packages"),
        python=one("python"),
        python_version=one("python_version"),
        free_bytes=int(min((size for size in free if size >= 0), default=0)),
        clock_offset_s=offset_s if abs(offset_s) > 1 else 0.0,
        libnfs=bool(one("libnfs")),
        missing=(),
        useful=(),
        problems=(),
    )
    return _judged(facts, machine, one, set(found.all("tool")), places, asked_python=python)


def _judged(
    facts: Facts,
    machine: Machine,
    one: Callable[[str], str],
    tools: set[str],
    places: Places,
    *,
    asked_python: str,
) -> Facts:
    problems = []
    missing: list[str] = []
    if one("kernel") != "Linux":
        problems.append(f"it runs {one('kernel') or 'no known system'}: a proxy needs Linux")
    if one("taken"):
        problems.append(
            f"there is a proxy already in {places.data_dir}; remove that one first, or name other directories and "
            "another service with --proxy-data, --install-dir and --service"
        )
    elif one("service"):
        # Installing would put this proxy's unit in the place of the other's, and undoing would remove it.
        problems.append(
            f"there is a service {places.service} already, of another proxy or left over; remove it first, or name "
            "another with --service, and other directories with --proxy-data and --install-dir"
        )
    elif one("releases"):
        problems.append(
            f"another service runs from {places.install_dir}: upgrading or removing one proxy would take the release "
            "from the other; name another directory with --install-dir"
        )
    if facts.free_bytes < FREE_FLOOR_BYTES:
        problems.append(
            f"only {facts.free_bytes >> 20} MiB are free where it would be installed; "
            f"{FREE_FLOOR_BYTES >> 20} MiB are needed"
        )
    if abs(facts.clock_offset_s) > CLOCK_LIMIT_S:
        problems.append(
            f"its clock differs by {facts.clock_offset_s:+.0f} s from the server's; set both by NTP first"
        )
    distribution = Distribution.of(one("family"), one("release"))
    if not facts.python:
        if asked_python:
            problems.append(
                f"{asked_python} there is no Python 3.11 or newer that can make virtual environments"
            )
        elif facts.packages:
            found = python_packages(machine, facts.packages, distribution)
            missing += found
            if not found:
                problems.append(
                    f"it has no Python 3.11 or newer with venv, and {facts.system} has no package of one; install one "
                    "there and name it with --python"
                )
    # Without systemd, setpriv makes the worker the user that it is.
    if not {"useradd", "runuser"} | (set() if facts.init == "systemd" else {"setpriv"}) <= tools:
        missing += {"apt-get": ["passwd", "util-linux"]}.get(
            facts.packages, ["shadow-utils", "util-linux"]
        )
    if not facts.packages and (missing or (not facts.python and not asked_python)):
        lacks = [] if facts.python or asked_python else ["Python 3.11 or newer with venv"]
        problems.append(
            f"it lacks {', '.join([*lacks, *missing])}, and has no package manager that is known here; install these there"
        )
        missing = []
    useful = () if facts.libnfs else nfs_packages(machine, facts.packages, distribution)
    return Facts(
        system=facts.system,
        architecture=facts.architecture,
        init=facts.init,
        packages=facts.packages,
        python=facts.python,
        python_version=facts.python_version,
        free_bytes=facts.free_bytes,
        clock_offset_s=facts.clock_offset_s,
        libnfs=facts.libnfs,
        missing=tuple(missing),
        useful=useful,
        problems=tuple(problems),
    )
