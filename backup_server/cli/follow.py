"""Follow a session to its end: bars on a terminal, lines elsewhere.

A bar for each running disk and one for the whole; Ctrl-C detaches and leaves the session running.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from backup_server import formats
from backup_server.cli import exits, output, summary
from backup_server.cli.client import part
from backup_server.cli.exits import CliError, Exit

if TYPE_CHECKING:
    from backup_server.cli.client import ApiClient
    from backup_server.cli.door import Door

POLL_S: Final = 0.5
ANSWERING_SHARE: Final = 5.0
"""A server that adds up very many disks is left alone for so many times what that took."""
LINE_EVERY_S: Final = 5.0
PAGE_VMS: Final = 500
SHOWN_VMS: Final = 100
"""Of the closing table; `--json` has all."""
MIN_BARS: Final = 10
SAME_LINE_EVERY_S: Final = 60.0
"""A progress line that says what the last one said: often enough to see that somebody still watches."""
PATIENCE_S: Final = 60.0
"""How long a server may be away (restarting) before following it is given up."""


@dataclass(slots=True, kw_only=True)
class Watch:
    """Asks for a session until it is finished; remembers which events were seen."""

    api: ApiClient
    session_id: str
    wait: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    vms: int = 0
    """How many of the VMs that are worked on are asked for with each look."""
    last_event: int = 0
    _away_since: float | None = field(default=None)
    _pause_s: float = field(default=POLL_S)

    def states(self) -> Iterator[dict[str, Any]]:
        """The session as it is, again and again, the finished one last, without VMs that are done."""
        while True:
            session = self._ask()
            if session is not None:
                yield session
                if session["state"] == "finished":
                    return
            self.wait(self._pause_s)

    def new_events(self) -> list[dict[str, Any]]:
        try:
            events = list(
                self.api.get(f"/sessions/{self.session_id}/events", after=self.last_event, limit=1000)[
                    "items"
                ]
            )
        except CliError as error:
            if error.code is not Exit.UNREACHABLE:
                raise
            return []
        if events:
            self.last_event = max(int(event["id"]) for event in events)
        return events

    def _ask(self) -> dict[str, Any] | None:
        try:
            began = self.clock()
            session: dict[str, Any] = self.api.get(
                f"/sessions/{self.session_id}", only="active", limit=self.vms
            )
            self._pause_s = max(POLL_S, ANSWERING_SHARE * (self.clock() - began))
        except CliError as error:
            if error.code is not Exit.UNREACHABLE or self._gave_up():
                raise
            return None
        self._away_since = None
        return session

    def _gave_up(self) -> bool:
        now = self.clock()
        if self._away_since is None:
            self._away_since = now
        return now - self._away_since > PATIENCE_S


def follow(door: Door, session: dict[str, Any]) -> None:
    """Show the session until it ends, then its summary; leaves the command with its exit code."""
    import typer

    bars = not door.json and output.console().is_terminal
    watch = Watch(api=door.api, session_id=str(session["id"]), vms=_bars_that_fit() if bars else 0)
    try:
        if door.json:
            _silently(watch)
        elif bars:
            _with_bars(watch)
        else:
            _with_lines(watch)
    except KeyboardInterrupt:
        short = str(session["id"])[:8]
        output.note(
            f"\nThe session goes on. Follow it with `{door.hint(f'session follow {short}')}`, "
            f"cancel it with `{door.hint(f'session cancel {short}')}`."
        )
        raise typer.Exit(Exit.INTERRUPTED.value) from None
    finish(door, whole_session(door.api, watch.session_id, limit=None if door.json else SHOWN_VMS))


def _bars_that_fit() -> int:
    return max(MIN_BARS, output.console().height - 4)


def whole_session(
    api: ApiClient, ref: str, *, limit: int | None = None, only: str | None = None
) -> dict[str, Any]:
    """A session with its VMs over all pages, at most `limit`; `vms_next` is set where there are more."""
    session: dict[str, Any] = {}
    vms: list[dict[str, Any]] = []
    while True:
        count = PAGE_VMS if limit is None else min(PAGE_VMS, limit - len(vms))
        session = api.get(
            f"/sessions/{part(session.get('id', ref))}",
            limit=count,
            only=only,
            cursor=session.get("vms_next"),
        )
        vms += session.get("vms") or ()
        if not session.get("vms_next") or (limit is not None and len(vms) >= limit):
            return {**session, "vms": vms}


def finish(door: Door, session: dict[str, Any]) -> None:
    """Summary and exit code of a session that has ended."""
    import typer

    if door.json:
        output.print_json(session)
    else:
        summary.print_summary(session)
    code = exits.of_session(session)
    if code is not Exit.OK:
        raise typer.Exit(code.value)


def _silently(watch: Watch) -> None:
    for _ in watch.states():
        pass


def _with_lines(watch: Watch) -> None:
    said_at, said = watch.clock(), ""
    for state in watch.states():
        for event in watch.new_events():
            output.say(event_line(event))
        now = watch.clock()
        if now - said_at >= LINE_EVERY_S and state["state"] == "running":
            line = progress_line(state)
            if line != said or now - said_at >= SAME_LINE_EVERY_S:
                said_at, said = now, line
                output.say(line)


def event_line(event: dict[str, Any]) -> str:
    at = formats.parse_time(event["at"]).astimezone().strftime("%H:%M:%S")
    mark = "" if event["level"] == "info" else f"{event['level']}: "
    return f"{at}  {mark}{event['text']}"


def progress_line(session: dict[str, Any]) -> str:
    """The whole session on one line, for logs."""
    progress = session.get("progress") or {}
    done, total = progress.get("done_bytes") or 0, progress.get("total_bytes") or 0
    share = f"{100 * done / total:.0f} %" if total else "-"
    words = [
        f"{share} of {formats.size(total)}",
        formats.rate(progress.get("bytes_per_s")),
        f"ETA {formats.duration(progress.get('eta_s'))}",
    ]
    if progress.get("bottleneck"):
        words.append(f"bottleneck {progress['bottleneck']}")
    ended = summary.disks_done(session)
    if ended:
        words.append(f"{ended} done")
    return "progress: " + ", ".join(words)


def _with_bars(watch: Watch) -> None:
    from backup_server.cli.bars import Bars

    with Bars() as bars:
        for state in watch.states():
            for event in watch.new_events():
                if event["level"] != "info":
                    bars.say(event_line(event), level=event["level"])
            bars.show(state)
