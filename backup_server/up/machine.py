"""Checks of the machine that need no server: `vmhaul doctor` runs them first."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from backup_server.up.options import read_json

MIN_PYTHON: Final = (3, 11)
MIN_FREE_BYTES: Final = 1 << 30
MIN_MEMORY_BYTES: Final = 1 << 30
MIN_OPEN_FILES: Final = 1024
GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    name: str
    level: str
    """ok, warning or error."""
    text: str
    advice: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def machine_checks(data_dir: Path) -> Iterator[Check]:
    """Every check, in the order in which a person would look."""
    yield python_check(sys.version_info[:2])
    yield system_check(platform.system())
    yield memory_check(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    yield open_files_check(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield data_dir_check(data_dir)
    yield free_space_check(data_dir)
    yield supervisor_check(data_dir)


def python_check(version: tuple[int, ...]) -> Check:
    shown = ".".join(str(part) for part in version)
    if version < MIN_PYTHON:
        return Check(
            name="Python",
            level="error",
            text=f"{shown} is too old",
            advice="install Python 3.11 or newer",
        )
    return Check(name="Python", level="ok", text=shown)


def system_check(system: str) -> Check:
    if system != "Linux":
        return Check(
            name="system",
            level="error",
            text=f"{system} is not supported",
            advice="run server and proxies on Linux",
        )
    return Check(name="system", level="ok", text=f"{system} {platform.release()}")


def memory_check(total_bytes: int) -> Check:
    text = f"{total_bytes / GIB:.1f} GiB"
    if total_bytes < MIN_MEMORY_BYTES:
        return Check(
            name="memory",
            level="warning",
            text=text,
            advice="the platform itself takes up to 600 MB; give the machine 2 GiB or more",
        )
    return Check(name="memory", level="ok", text=text)


def open_files_check(limit: int) -> Check:
    if limit != resource.RLIM_INFINITY and limit < MIN_OPEN_FILES:
        return Check(
            name="open files",
            level="warning",
            text=f"limited to {limit}",
            advice=f"raise it to {MIN_OPEN_FILES} or more with `ulimit -n`",
        )
    return Check(name="open files", level="ok", text=f"up to {limit}")


def data_dir_check(data_dir: Path) -> Check:
    """Owner only, and writable: passwords and keys lie there."""
    name = "data directory"
    if not data_dir.exists():
        return Check(
            name=name,
            level="warning",
            text=f"{data_dir} does not exist yet",
            advice="`vmhaul up` makes it; or name the right one with --data",
        )
    if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
        return Check(
            name=name,
            level="error",
            text=f"{data_dir} may not be written by this user",
            advice="run vmhaul as its owner",
        )
    if data_dir.stat().st_mode & 0o077:
        return Check(
            name=name,
            level="warning",
            text=f"{data_dir} is open to other users",
            advice=f"chmod 700 {data_dir}",
        )
    return Check(name=name, level="ok", text=str(data_dir))


def free_space_check(data_dir: Path) -> Check:
    nearest = next(path for path in (data_dir, *data_dir.parents) if path.exists())
    free_bytes = shutil.disk_usage(nearest).free
    text = f"{free_bytes / GIB:.1f} GiB free for {data_dir}"
    if free_bytes < MIN_FREE_BYTES:
        return Check(
            name="data space",
            level="error",
            text=text,
            advice="free some space: the job database and the broker stop when it is full",
        )
    return Check(name="data space", level="ok", text=text)


def supervisor_check(data_dir: Path) -> Check:
    server = read_json(data_dir / "run" / "server.json")
    if server is None:
        return Check(
            name="vmhaul up",
            level="error",
            text=f"does not run on {data_dir}",
            advice=f"start it with `vmhaul up --data {data_dir}`",
        )
    return Check(name="vmhaul up", level="ok", text=f"runs at {server['url']}")
