from __future__ import annotations

from datetime import UTC, datetime, timedelta

from backup_server.services.steps import MAX_WAIT_S, is_due

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def waits(seconds: float) -> dict[str, str]:
    return {"not_before": (NOW + timedelta(seconds=seconds)).isoformat()}


def test_a_try_waits_for_its_time_and_no_longer_than_a_wait_can_be() -> None:
    assert is_due({}, NOW)
    assert is_due(waits(-1), NOW)
    assert not is_due(waits(MAX_WAIT_S), NOW, at_most_s=MAX_WAIT_S)
    # Written by a clock that was ahead, and went back since.
    assert is_due(waits(3600), NOW, at_most_s=MAX_WAIT_S)
    assert not is_due(waits(3600), NOW)
