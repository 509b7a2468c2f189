"""Where a proxy lies on a Windows machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from backup_server.deploy.places import AnyPlaces

ACCOUNT: Final = "LOCAL SERVICE"
"""With the task's own SID in its token, by which the data directory knows this task from all others of the account."""
_PATH: Final = re.compile(r"[A-Za-z]:(\\[A-Za-z0-9_+-](?:[A-Za-z0-9._+ -]*[A-Za-z0-9_+-])?){2,}")
"""Never right below a drive: it is removed with all that is in it. Nothing in it needs quoting beyond two quotes."""
_WORD: Final = re.compile(r"[a-z][a-z0-9_-]{0,30}")
_RELEASE: Final = re.compile(r"\\releases\\([^\\]+)\\venv\\", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowsPlaces(AnyPlaces):
    """Several proxies on a machine differ in all of them but the user."""

    install_dir: str = "C:\\Program Files\\vmhaul"
    data_dir: str = "C:\\ProgramData\\vmhaul-proxy"
    service: str = "vmhaul-proxy"
    """Name of the scheduled task."""
    user: str = ACCOUNT

    def __post_init__(self) -> None:
        """ValueError for what a command line could not carry."""
        for name in ("install_dir", "data_dir"):
            if not _PATH.fullmatch(getattr(self, name)):
                raise ValueError(
                    f"{name} must be a path of Windows at least two levels deep, as in C:\\ProgramData\\vmhaul-proxy, of "
                    "letters, digits, spaces and ._+-"
                )
        if not _WORD.fullmatch(self.service):
            raise ValueError(
                "service must be 1 to 31 small letters, digits, dashes and underscores, a letter first"
            )
        if self.user != ACCOUNT:
            raise ValueError(f"user cannot be chosen on Windows: the worker runs as {ACCOUNT}")

    @property
    def releases(self) -> str:
        return f"{self.install_dir}\\releases"

    def release(self, release_id: str) -> str:
        return f"{self.releases}\\{release_id}"

    def python(self, release_id: str) -> str:
        return f"{self.release(release_id)}\\venv\\Scripts\\python.exe"


def release_of(program: str) -> str:
    """Id of the release in which that program lies; empty: in none."""
    found = _RELEASE.search(program)
    return found[1] if found else ""
