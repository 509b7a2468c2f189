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
from backup_server.cli.exits import CliError, Exit

if TYPE_CHECKING:
    from backup_server.cli.client import ApiClient
    from backup_server.cli.door import Door

POLL_S: Final = 0.5
LINE_EVERY_S: Final = 5.0
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
    last_event: int = 0
    _away_since: float | None = field(default=None)

    def states(self) -> Iterator[dict[str, Any]]:
        """The session as it is, again and again, the finished one last."""
        while True:
            session = self._ask()
            if session is not None:
                yield session
                if session["state"] == "finished":
                    return
            self.wait(POLL_S)

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
            session: dict[str, Any] = self.api.get(f"/sessions/{self.session_id}")
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

    watch = Watch(api=door.api, session_id=str(session["id"]))
    try:
        if door.json:
            final = _silently(watch)
        elif output.console().is_terminal:
            final = _with_bars(watch)
        else:
            final = _with_lines(watch)
    except KeyboardInterrupt:
        short = str(session["id"])[:8]
        output.note(
            f"\nThe session goes on. Follow it with `{door.hint(f'session follow {short}')}`, "
            f"cancel it with `{door.hint(f'session cancel {short}')}`."
        )
        raise typer.Exit(Exit.INTERRUPTED.value) from None
    finish(door, final)


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


def _silently(watch: Watch) -> dict[str, Any]:
    session: dict[str, Any] = {}
    for state in watch.states():
        session = state
    return session


def _with_lines(watch: Watch) -> dict[str, Any]:
    session: dict[str, Any] = {}
    said_at, said = watch.clock(), ""
    for state in watch.states():
        session = state
        for event in watch.new_events():
            output.say(event_line(event))
        now = watch.clock()
        if now - said_at >= LINE_EVERY_S and state["state"] == "running":
            line = progress_line(state)
            if line != said or now - said_at >= SAME_LINE_EVERY_S:
                said_at, said = now, line
                output.say(line)
    return session


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


def _with_bars(watch: Watch) -> dict[str, Any]:
    from backup_server.cli.bars import Bars

    session: dict[str, Any] = {}
    with Bars() as bars:
        for state in watch.states():
            session = state
            for event in watch.new_events():
                if event["level"] != "info":
                    bars.say(event_line(event), level=event["level"])
            bars.show(state)
    return session
