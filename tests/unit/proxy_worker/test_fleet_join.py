from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import structlog

from proxy_worker import enrol as enrolling
from proxy_worker.config import Enrolment
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.errors import EnrolmentError, ServerUnavailableError
from proxy_worker.healthcheck import is_heard


def test_a_machine_joins_when_there_is_a_token_and_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file comes late, the server later, and the first token is one that was replaced meanwhile."""
    file = tmp_path / "token"
    made = Enrolment(
        proxy_id=ProxyId("p"), name="box", server_url="https://s", server_key="ab", broker_url="x"
    )
    asked: list[str] = []

    def join(data_dir: Path, text: str, *, name: str) -> Enrolment:
        assert (data_dir, name) == (tmp_path, "box")
        asked.append(text)
        if len(asked) == 1:
            raise ServerUnavailableError("nobody there")
        if text == "old":
            raise EnrolmentError("not valid")
        return made

    happens: list[Any] = [
        lambda: file.write_text("old"),
        lambda: None,
        lambda: file.write_text("new"),
    ]
    monkeypatch.setattr(enrolling, "join", join)
    with structlog.testing.capture_logs() as said:
        found = enrolling.join_patiently(
            tmp_path, file, "box", log=structlog.get_logger(), pause=lambda _: happens.pop(0)()
        )
    assert found is made
    assert asked == ["old", "old", "new"]
    assert [line["event"] for line in said] == ["proxy.not-joined"] * 3


def test_a_worker_is_well_while_its_heartbeats_are_taken() -> None:
    text = "# TYPE vmhaul_worker_heartbeat_timestamp_seconds gauge\nvmhaul_worker_heartbeat_timestamp_seconds {}\n"
    assert is_heard(text.format(1000.0), 1030.0)
    assert not is_heard(text.format(1000.0), 1100.0)
    assert not is_heard(text.format(0.0), 1100.0)
    assert not is_heard("", 1.0)
