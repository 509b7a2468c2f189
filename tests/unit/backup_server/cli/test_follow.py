"""Following a session through a server that answers, stumbles and goes away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from backup_server.cli.bars import Bars
from backup_server.cli.door import Door
from backup_server.cli.exits import CliError, Exit
from backup_server.cli.follow import PATIENCE_S, Watch, _with_lines, follow


class ScriptedApi:
    """Answers what it was told, one entry for each question."""

    def __init__(self, *answers: dict[str, Any] | CliError) -> None:
        self._answers: Iterator[dict[str, Any] | CliError] = iter(answers)

    def get(self, path: str, **query: Any) -> Any:
        if path.endswith("/events"):
            return {"items": [{"id": 7}, {"id": 8}] if query["after"] < 7 else []}
        answer = next(self._answers)
        if isinstance(answer, CliError):
            raise answer
        return answer


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def wait(self, seconds: float) -> None:
        self.now += seconds


def _watch(api: ScriptedApi, clock: Clock) -> Watch:
    return Watch(api=api, session_id="s1", wait=clock.wait, clock=lambda: clock.now)  # type: ignore[arg-type]


RUNNING = {"state": "running", "vms": []}
FINISHED = {"state": "finished", "vms": []}
AWAY = CliError("gone", Exit.UNREACHABLE)


def test_until_it_is_finished() -> None:
    states = list(_watch(ScriptedApi(RUNNING, RUNNING, FINISHED), Clock()).states())
    assert [state["state"] for state in states] == ["running", "running", "finished"]


def test_a_server_that_restarts_is_waited_for() -> None:
    states = list(_watch(ScriptedApi(RUNNING, AWAY, AWAY, FINISHED), Clock()).states())
    assert [state["state"] for state in states] == ["running", "finished"]


def test_a_server_that_stays_away_is_given_up() -> None:
    clock = Clock()
    with pytest.raises(CliError, match="gone"):
        list(_watch(ScriptedApi(*[AWAY] * 1000), clock).states())
    assert clock.now > PATIENCE_S


def test_another_error_ends_it_at_once() -> None:
    with pytest.raises(CliError, match="no such session"):
        list(_watch(ScriptedApi(CliError("no such session")), Clock()).states())


def test_events_are_seen_once() -> None:
    watch = _watch(ScriptedApi(), Clock())
    assert [event["id"] for event in watch.new_events()] == [7, 8]
    assert watch.new_events() == []


def test_bars_follow_the_running_disks() -> None:
    def session(*states: str) -> dict[str, Any]:
        return {
            "kind": "backup",
            "job": "nightly",
            "state": "running",
            "counts": {"vms": 1, "tasks": len(states), "tasks_done": states.count("done")},
            "progress": {
                "total_bytes": 100,
                "done_bytes": 40,
                "bytes_per_s": 10.0,
                "eta_s": 6.0,
                "bottleneck": "source",
            },
            "vms": [
                {
                    "name": "db01",
                    "state": "running",
                    "tasks": [
                        {
                            "id": f"t{n}",
                            "label": f"Hard disk {n}",
                            "state": state,
                            "proxy": "default",
                            "progress": {},
                        }
                        for n, state in enumerate(states)
                    ],
                }
            ],
        }

    with Bars() as bars:
        bars.show(session("running", "running", "pending"))
        names = [task.description for task in bars._progress.tasks]
        assert names == ["Backup nightly, 0 of 3 disks", "db01 / Hard disk 0", "db01 / Hard disk 1"]
        bars.show(session("done", "running", "pending"))
        names = [task.description for task in bars._progress.tasks]
        assert names == ["Backup nightly, 1 of 3 disks", "db01 / Hard disk 1"]
        total = bars._progress.tasks[0]
        assert (total.completed, total.total) == (40, 100)
        assert total.fields["eta"] == "ETA 6.0s"
        assert total.fields["note"] == "bottleneck source"


def _door(api: object, *, json: bool) -> Door:
    door = Door(data=Path("/data"), server=None, token_file=None, json=json)
    door._api = api  # type: ignore[assignment]
    return door


def test_ctrl_c_detaches_and_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        def get(self, path: str, **query: Any) -> Any:
            raise KeyboardInterrupt

    monkeypatch.delenv("VMHAUL_DATA", raising=False)
    with pytest.raises(typer.Exit) as caught:
        follow(_door(Interrupted(), json=False), {"id": "12345678-aaaa"})
    assert caught.value.exit_code == 130
    told = capsys.readouterr().err
    assert "`vmhaul session follow 12345678 --data /data`" in told
    assert "`vmhaul session cancel 12345678 --data /data`" in told


@pytest.mark.parametrize(("result", "code"), [("warning", 3), ("failed", 4), ("cancelled", 6)])
def test_the_exit_code_tells_the_result(
    capsys: pytest.CaptureFixture[str], result: str, code: int
) -> None:
    final = {**FINISHED, "id": "s1", "kind": "backup", "result": result}
    with pytest.raises(typer.Exit) as caught:
        follow(_door(ScriptedApi(final, final), json=True), {"id": "s1"})
    assert caught.value.exit_code == code
    assert json.loads(capsys.readouterr().out) == final


def test_a_progress_line_is_said_again_when_it_says_more(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    waiting = {**RUNNING, "progress": {"total_bytes": 100}}
    moving = {**RUNNING, "progress": {"total_bytes": 100, "done_bytes": 50}}
    api = ScriptedApi(*[waiting] * 60, *[moving] * 11, *[waiting] * 200, FINISHED)
    watch = _watch(api, clock)
    watch.last_event = 8
    _with_lines(watch)
    said = [line.split(",")[0] for line in capsys.readouterr().out.splitlines()]
    # 30 s of waiting, 5 s that move, 100 s of waiting: the second line of each only after a minute
    assert said == [
        "progress: 0 % of 100 B",
        "progress: 50 % of 100 B",
        "progress: 0 % of 100 B",
        "progress: 0 % of 100 B",
    ]
