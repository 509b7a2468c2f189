from __future__ import annotations

import json

import pytest

from backup_server.services.marks import Mark, read_mark, snapshot_description, snapshot_name

MARK = Mark(server_id="srv", intent_id="42", session_id="s")


def test_what_is_written_is_read() -> None:
    assert read_mark(snapshot_name("42"), snapshot_description(MARK)) == MARK


@pytest.mark.parametrize(
    ("name", "description"),
    [
        ("vmhaul-backup 43", snapshot_description(MARK)),
        ("my vmhaul-backup 42", snapshot_description(MARK)),
        ("vmhaul-backup 42", ""),
        ("vmhaul-backup 42", "made by hand"),
        ("vmhaul-backup 42", "null"),
        ("vmhaul-backup 42", json.dumps(["srv", "42"])),
        ("vmhaul-backup 42", json.dumps({"vmhaul": "srv", "intent": 42})),
        ("vmhaul-backup 42", json.dumps({"vmhaul": None, "intent": "42"})),
        ("vmhaul-backup 42", json.dumps({"intent": "42", "session": {}})),
        ("", snapshot_description(MARK)),
    ],
)
def test_what_does_not_agree_is_no_mark(name: str, description: str) -> None:
    assert read_mark(name, description) is None
