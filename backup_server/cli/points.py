"""References to restore points and sessions: an id, the beginning of one, `VM@latest`, `VM@2`,
`VM@2026-11-23`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Final

from backup_server import formats
from backup_server.cli.exits import CliError

if TYPE_CHECKING:
    from backup_server.cli.client import ApiClient

_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ID_START: Final = re.compile(r"[0-9a-f][0-9a-f-]{3,35}")
MAX_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ById:
    """A whole id or the beginning of one (four characters or more)."""

    start: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ByAge:
    """The n-th newest point of a VM; the newest is 1."""

    vm: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ByDay:
    """The newest point of a VM on a day of the local calendar."""

    vm: str
    day: date


PointRef = ById | ByAge | ByDay


def parse_point(text: str) -> PointRef:
    """What the text refers to. CliError tells the forms when it has none of them."""
    vm, separator, rest = text.rpartition("@")
    if not separator:
        if _ID_START.fullmatch(text.lower()):
            return ById(start=text.lower())
        raise CliError(_forms(text, "is neither an id nor VM@..."))
    if not vm:
        raise CliError(_forms(text, "names no VM before the @"))
    if rest == "latest":
        return ByAge(vm=vm, number=1)
    if rest.isdecimal() and int(rest) > 0:
        return ByAge(vm=vm, number=int(rest))
    try:
        return ByDay(vm=vm, day=date.fromisoformat(rest))
    except ValueError:
        raise CliError(_forms(text, f"has '{rest}' after the @")) from None


def _forms(text: str, problem: str) -> str:
    return (
        f"'{text}' {problem}; a restore point is named by its id, the beginning of its id, "
        "VM@latest, VM@2 (second newest) or VM@2026-11-23 (newest of that day)"
    )


def choose_point(
    ref: ByAge | ByDay, points: Sequence[dict[str, Any]], local_day: Callable[[str], date]
) -> dict[str, Any]:
    """The point that `ref` means among the VM's points, newest first.

    CliError when there is none, or when VMs of the same name would have to be guessed between.
    """
    if not points:
        raise CliError(
            f"VM '{ref.vm}' has no restore points: see `vmhaul restore-point list` for the names"
        )
    owners = {point["instance_uuid"] for point in points}
    if len(owners) > 1:
        raise CliError(
            f"{len(owners)} VMs of the name '{ref.vm}' have restore points: "
            "choose the point by its id from `vmhaul restore-point list`"
        )
    if isinstance(ref, ByAge):
        if ref.number > len(points):
            raise CliError(f"VM '{ref.vm}' has only {formats.plural(len(points), 'restore point')}")
        return points[ref.number - 1]
    for point in points:
        if local_day(point["created_at"]) == ref.day:
            return point
    known = sorted({local_day(point["created_at"]).isoformat() for point in points}, reverse=True)
    raise CliError(
        f"VM '{ref.vm}' has no restore point of {ref.day.isoformat()}; there are some of "
        + ", ".join(known[:MAX_SHOWN])
    )


def local_day(text: str) -> date:
    """Day of the local calendar on which an RFC 3339 time falls."""
    return datetime.fromisoformat(text).astimezone().date()


def find_point(api: ApiClient, text: str) -> dict[str, Any]:
    """The restore point that the text refers to, from the server's catalogue."""
    ref = parse_point(text)
    if isinstance(ref, ById):
        return dict(api.get(f"/restore-points/{ref.start}"))
    return choose_point(ref, list(api.items("/restore-points", vm=ref.vm)), local_day)


def session_ref(text: str) -> str:
    """A session reference as the server takes it: an id, the beginning of one, or `latest`."""
    if text != "latest" and not _ID_START.fullmatch(text.lower()):
        raise CliError(f"'{text}' is not a session: give its id, the beginning of its id, or 'latest'")
    return text.lower()


def find_session_id(api: ApiClient, text: str) -> str:
    """The id that a session reference means now."""
    ref = session_ref(text)
    return ref if _ID.fullmatch(ref) else str(api.get(f"/sessions/{ref}", limit=0)["id"])
