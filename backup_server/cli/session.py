"""`vmhaul session`: runs of jobs, restores and maintenance."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from backup_server import formats
from backup_server.cli import output, summary
from backup_server.cli.client import part
from backup_server.cli.door import Door, noun, with_door
from backup_server.cli.exits import CliError
from backup_server.cli.follow import SHOWN_VMS, event_line, follow, progress_line, whole_session
from backup_server.cli.points import find_session_id, session_ref

app = noun("Sessions: runs of jobs, restores, checks.")

SessionArgument = Annotated[
    str, typer.Argument(metavar="SESSION", help="Id, the beginning of one, or 'latest'.")
]


@app.command("list")
@with_door
def list_(
    door: Door,
    job: Annotated[str | None, typer.Option("--job", help="Only those of this job.")] = None,
    state: Annotated[str | None, typer.Option("--state", help="queued, running or finished.")] = None,
    kind: Annotated[
        str | None,
        typer.Option("--kind", help="backup, restore, repository-check, prune, rescan or evacuation."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many, newest first.")] = 20,
) -> None:
    """List sessions, newest first."""
    items = list(door.api.items("/sessions", job=job, state=state, kind=kind, limit=limit))
    if door.json:
        output.print_json({"items": items, "next": None})
        return
    output.table(
        ("id", "kind", "job", "started", "took", "disks", "read", "transferred", "result", "reason"),
        [_row(item) for item in items],
        right=("took", "disks", "read", "transferred"),
        empty="No sessions.",
    )


def _row(session: dict[str, Any]) -> tuple[object, ...]:
    progress = session.get("progress") or {}
    took = formats.span(session.get("started_at"), session.get("finished_at"))
    return (
        session["id"][:8],
        session["kind"],
        session.get("job"),
        formats.moment(session.get("started_at")),
        formats.duration(took.total_seconds() if took else None),
        (session.get("counts") or {}).get("tasks"),
        formats.size(progress.get("read_bytes")),
        formats.size(progress.get("stored_bytes")),
        session.get("result") or session["state"],
        session.get("reason"),
    )


@app.command("show")
@with_door
def show(
    door: Door,
    session: SessionArgument,
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            help="VMs that are waiting or active, or that ended success, warning, failed, cancelled.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=0, help=f"How many VMs; {SHOWN_VMS}, all with --json."),
    ] = None,
) -> None:
    """Show one session with its VMs and disks."""
    wanted = limit if limit is not None or door.json else SHOWN_VMS
    found = whole_session(door.api, session_ref(session), limit=wanted, only=only)
    if door.json:
        output.print_json(found)
        return
    output.facts(
        [
            ("session", found["id"]),
            ("what", summary.title(found)),
            ("started", formats.moment(found.get("started_at"))),
            ("finished", formats.moment(found.get("finished_at"))),
            *summary.waiting(found),
        ]
    )
    if found["state"] != "finished":
        output.say(progress_line(found))
    summary.print_summary(found)


@app.command("follow")
@with_door
def follow_(door: Door, session: SessionArgument) -> None:
    """Follow a session to its end; the exit code tells its result."""
    follow(door, {"id": find_session_id(door.api, session)})


@app.command("cancel")
@with_door
def cancel(door: Door, session: SessionArgument) -> None:
    """Cancel a session: running disks stop, snapshots are removed."""
    found = door.api.post(f"/sessions/{part(session_ref(session))}/cancel")
    if door.json:
        output.print_json(found)
    else:
        hint = door.hint(f"session follow {found['id'][:8]}")
        output.say(f"Session {found['id']} is being cancelled. See it end with `{hint}`.")


@app.command("log")
@with_door
def log(door: Door, session: SessionArgument) -> None:
    """Print the events of a session, oldest first."""
    session_id = find_session_id(door.api, session)
    events = list(_all_events(door, session_id))
    if door.json:
        output.print_json({"items": events, "next": None})
        return
    for event in events:
        output.say(event_line(event))


def _all_events(door: Door, session_id: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    while True:
        after = events[-1]["id"] if events else 0
        page = door.api.get(f"/sessions/{part(session_id)}/events", after=after, limit=1000)["items"]
        if not page:
            return events
        events.extend(page)


@app.command("retry")
@with_door
def retry(
    door: Door,
    session: SessionArgument,
    no_follow: Annotated[
        bool, typer.Option("--no-follow", help="Start it and return at once.")
    ] = False,
) -> None:
    """Run the VMs again that failed in a backup session."""
    found = door.api.get(f"/sessions/{part(session_ref(session))}", limit=0)
    if found["kind"] != "backup" or not found.get("job"):
        raise CliError(f"session {found['id']} is no backup of a job: only those can be retried")
    newest = next(door.api.items("/sessions", job=found["job"], kind="backup", limit=1))
    if newest["id"] != found["id"]:
        raise CliError(
            f"session {found['id']} is not the last one of job '{found['job']}': "
            f"see `{door.hint('session show ' + newest['id'][:8])}`"
        )
    new = door.api.post(f"/jobs/{part(found['job'])}/run", {"only_failed": True}, slow=True)
    if not no_follow:
        follow(door, new)
    elif door.json:
        output.print_json(new)
    else:
        output.say(f"Session {new['id']} started.")
