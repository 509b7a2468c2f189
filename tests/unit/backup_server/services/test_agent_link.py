"""The link to a real child; the child here is a few lines of Python instead of the agent."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backup_server.errors import ConflictError, IntegrityError, UnavailableError
from backup_server.services.agent_link import AgentProcess

SERVE = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    answer = {"id": request["id"]}
    call, args = request["call"], request["args"]
    {body}
    print(json.dumps(answer), flush=True)
"""

Start = Callable[[str], AgentProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[AgentProcess] = []

    def start(body: str) -> AgentProcess:
        code = SERVE.replace("{body}", body)
        running.append(AgentProcess(tmp_path / "log", [sys.executable, "-c", code]))
        return running[-1]

    yield start
    for process in running:
        process.close()


def test_answers(start: Start) -> None:
    agent = start('answer["ok"] = {"call": call, **args}')
    assert agent.call("space", {"x": 1}, timeout_s=20) == {"call": "space", "x": 1}
    assert agent.call("points", {}, timeout_s=20) == {"call": "points"}
    assert agent.alive


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("transient", UnavailableError),
        ("permanent", ConflictError),
        ("integrity", IntegrityError),
        ("unheard-of", ConflictError),
    ],
)
def test_errors_by_kind(start: Start, kind: str, error: type[Exception]) -> None:
    agent = start(f'answer["error"] = {{"kind": "{kind}", "message": "what and why"}}')
    with pytest.raises(error, match="what and why"):
        agent.call("check", {}, timeout_s=20)
    assert agent.alive


@pytest.mark.parametrize(
    "body",
    [
        "sys.exit(3)",
        'print("no json"); sys.stdout.flush()',
        'answer["id"] = 77; answer["ok"] = {}',
        'answer["ok"] = "not a value"',
        "answer = [1]",
    ],
)
def test_lost_agents_are_unavailable_and_dead(start: Start, body: str) -> None:
    agent = start(body)
    with pytest.raises(UnavailableError):
        agent.call("space", {}, timeout_s=20)
    assert not agent.alive
    with pytest.raises(UnavailableError):
        agent.call("space", {}, timeout_s=20)


def test_silence_ends_with_the_time(start: Start) -> None:
    agent = start("import time; time.sleep(60)")
    with pytest.raises(UnavailableError, match="did not answer"):
        agent.call("space", {}, timeout_s=0.3)
    assert not agent.alive


def test_secrets_of_the_environment_stay_here(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMHAUL_DATABASE", "postgresql://user:secret@host/db")
    agent = start('import os; answer["ok"] = dict(os.environ)')
    seen = agent.call("space", {}, timeout_s=20)
    assert "secret" not in str(seen)
    assert seen["PATH"] == os.environ["PATH"]


def test_closing_lets_the_agent_end_by_itself(start: Start, tmp_path: Path) -> None:
    agent = start('answer["ok"] = {}; print("to the log", file=sys.stderr, flush=True)')
    agent.call("space", {}, timeout_s=20)
    agent.close()
    agent.close()
    assert not agent.alive
    assert (tmp_path / "log").read_text() == "to the log\n"
