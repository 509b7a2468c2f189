"""Extents of scale-out repositories: which there are and what each may be used for.

The truth is `Repository.settings["extents"]`; the repository's location is made from it (`scale-out:` and the
list as JSON), so that everybody who opens the repository knows the extents without asking again.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from backup_server.db.states import SessionKind
from backup_server.db.tables import Repository, Session
from backup_server.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    VmhaulError,
)
from backup_server.services import sessions, verification
from backup_server.services.context import Context
from backup_server.services.repository_fields import check_location, is_inside
from backup_server.services.shapes import Fields, by_ref

SETTING: Final = "extents"
SCHEME: Final = "scale-out:"
ACTIVE: Final = "active"
SEALED: Final = "sealed"
MAINTENANCE: Final = "maintenance"
STATES: Final = (ACTIVE, SEALED, MAINTENANCE)
FIRST_NAME: Final = "first"
"""What the place of a repository is called when it gets a second one, unless a name is given."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

Rows = Sequence[Mapping[str, Any]]


def list_all(ctx: Context, ref: str) -> dict[str, Any]:
    """Every extent with its state, space and packs; a repository without extents has one, its own place."""
    row = _row(ctx, ref)
    return {"extents": _call(ctx, row.id, "extent_list", slow=True)["extents"]}


def add(
    ctx: Context, ref: str, *, name: str, location: str, first_name: str = FIRST_NAME
) -> dict[str, Any]:
    """Make a place an extent of the repository. May be repeated after it broke off."""
    given = Fields({"name": name, "location": location, "first_name": first_name})
    for field in ("name", "first_name"):
        given.checked(field, _check_name)
    given.checked("location", check_location)
    if is_inside(location, ctx.settings.data_dir):
        given.wrong("location", f"lies in the server's data directory {ctx.settings.data_dir}")
    given.finish("the extent")
    row = _row(ctx, ref)
    if any(extent["name"] == name for extent in _known(row)):
        raise ConflictError(
            f"repository {row.name!r} has an extent {name!r} already; give another name"
        )
    answer = _call(
        ctx, row.id, "extent_add", slow=True, extent=name, place=location, first_name=first_name
    )
    _store(ctx, row.id, _known(row), answer["extents"])
    return list_all(ctx, row.id)


def set_state(ctx: Context, ref: str, extent: str, state: str) -> dict[str, Any]:
    """Seal an extent, take it out for maintenance, or make it active again."""
    if state not in STATES:
        raise InvalidError(
            f"there is no state {state!r}", details={"state": f"must be one of {', '.join(STATES)}"}
        )
    row = _row(ctx, ref)
    before = _known(row)
    now = _one(row, extent)["state"]
    if now == state:
        return list_all(ctx, row.id)
    if state == ACTIVE or now == MAINTENANCE:
        # What came and went meanwhile is brought over first; a writer that does not know would be missed.
        sessions.refuse_busy(ctx, row, f"extent {extent!r} is made level with the others first")
        after = _call(ctx, row.id, "extent_activate", slow=True, extent=extent)["extents"]
    else:
        if state == MAINTENANCE:
            # Where it is broken already, the others have all that can be had.
            with contextlib.suppress(ConflictError, UnavailableError):
                _call(ctx, row.id, "extent_level", slow=True)
        after = before
    after = [{**one, "state": state} if one["name"] == extent else one for one in after]
    if not any(one["state"] == ACTIVE for one in after):
        raise ConflictError(
            f"extent {extent!r} is the last that is active; activate or add another first"
        )
    _store(ctx, row.id, before, after)
    return list_all(ctx, row.id)


def evacuate(ctx: Context, ref: str, extent: str) -> dict[str, Any]:
    """Begin to move an extent's packs to the active ones; a Session. It takes no new data from now on."""
    row = _row(ctx, ref)
    if _one(row, extent)["state"] != SEALED:
        set_state(ctx, ref, extent, SEALED)
    with ctx.db() as s:
        locked = by_ref(s, Repository, row.id)
        verification.refuse_second(s, locked, SessionKind.EVACUATION)
        session = sessions.insert(
            s,
            SessionKind.EVACUATION,
            now=ctx.clock(),
            repository_id=row.id,
            options={"extent": extent},
        )
    ctx.wake_engine.set()
    return sessions.get(ctx, session.id)


def run_evacuation(ctx: Context, session: Session, repository_id: str) -> dict[str, Any]:
    """Carry out a session. Going on after a crash is beginning again."""
    extent = str(session.options.get("extent"))
    return _call(ctx, repository_id, "extent_evacuate", slow=True, extent=extent)


def remove(ctx: Context, ref: str, extent: str, *, lost: bool = False) -> dict[str, Any]:
    """Take an evacuated extent out of the repository; with `lost` one that will never come back."""
    row = _row(ctx, ref)
    state = _one(row, extent)["state"]
    if lost and state != MAINTENANCE:
        raise ConflictError(
            f"extent {extent!r} is {state}; set it to maintenance before it is given up as lost"
        )
    if not lost and state != SEALED:
        raise ConflictError(f"extent {extent!r} is {state}; evacuate it before it is removed")
    sessions.refuse_busy(ctx, row, f"extent {extent!r} is about to be removed")
    answer = _call(ctx, row.id, "extent_remove", slow=True, extent=extent, lost=lost)
    _store(ctx, row.id, _known(row), answer["extents"])
    if not lost:
        _retire(ctx, row, extent)
    return list_all(ctx, row.id)


def _retire(ctx: Context, row: Repository, extent: str) -> None:
    """Take the repository's marks off an extent, after it is written down that it is none any more: one that
    is named and bears no mark would keep the repository from being opened. What fails leaves marks.
    """
    try:
        _call(ctx, row.id, "extent_retire", slow=True, location=row.location, extent=extent)
    except VmhaulError as error:
        ctx.log.warning("extent.not-retired", repository=row.name, extent=extent, reason=str(error))


def known(row: Repository) -> list[dict[str, str]]:
    """The extents as they are stored; none for a repository in one place."""
    return [dict(one) for one in (row.settings or {}).get(SETTING) or []]


def offline(row: Repository) -> list[str]:
    """Names of the extents that are in maintenance."""
    return [one["name"] for one in _known(row) if one["state"] == MAINTENANCE]


# ---- inside ----------------------------------------------------------------------------------------


def _known(row: Repository) -> Rows:
    """As known(), also for one that was imported by its location."""
    if stored := known(row):
        return stored
    if row.location.startswith(SCHEME):
        rows: list[dict[str, Any]] = json.loads(row.location.removeprefix(SCHEME))
        return [{"state": ACTIVE, **one} for one in rows]
    return []


def _one(row: Repository, extent: str) -> Mapping[str, Any]:
    for one in _known(row):
        if one["name"] == extent:
            return one
    names = ", ".join(one["name"] for one in _known(row)) or "none: it is in one place"
    raise NotFoundError(f"repository {row.name!r} has no extent {extent!r}; there are: {names}")


def _row(ctx: Context, ref: str) -> Repository:
    with ctx.db.read() as s:
        return by_ref(s, Repository, ref)


def _check_name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("must be letters, digits, '.', '_' and '-', at most 63")
    return value


def _call(
    ctx: Context, repository_id: str, call: str, *, slow: bool = False, **args: Any
) -> dict[str, Any]:
    access = ctx.agents.access(repository_id)
    link = ctx.agents.start()
    try:
        return link.call(
            call,
            {
                "location": access.location,
                "storage_secrets": access.storage.secrets_object(),
                **args,
            },
            timeout_s=ctx.agents.long_timeout_s if slow else ctx.agents.timeout_s,
        )
    finally:
        link.close()


def _store(ctx: Context, repository_id: str, before: Rows, after: Rows) -> None:
    """Replace the list, unless somebody else was faster."""
    with ctx.db() as s:
        row = s.get_one(Repository, repository_id, with_for_update=True)
        if [dict(one) for one in _known(row)] != [dict(one) for one in before]:
            raise ConflictError(f"the extents of repository {row.name!r} changed meanwhile; look again")
        extents = [{name: one[name] for name in ("name", "location", "state")} for one in after]
        row.settings = {**(row.settings or {}), SETTING: extents}
        row.location = SCHEME + json.dumps(extents)
    ctx.agents.forget(repository_id)
