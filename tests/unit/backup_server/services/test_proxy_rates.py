"""The rate of a proxy's own: how it is set, and how it is shown."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from backup_server.db.tables import OutboxRow
from backup_server.errors import InvalidError
from backup_server.services import proxies, proxy_rates
from backup_server.services.context import Context
from tests.support.history import Clock, Seeded

WINDOW = {"text": "mon 02:00-03:00"}


def test_a_rate_with_hours_is_set_shown_and_taken_away(
    ctx: Context, seeded: Seeded, clock: Clock
) -> None:
    del seeded
    before = proxies.get(ctx, "default")
    assert (before["rate_limit_bytes_per_s"], before["rate_limit"]) == (None, "unlimited")
    shown = proxies.edit(
        ctx,
        "default",
        {"rate_limit": "400Mbit", "rate_windows": [{"window": WINDOW, "rate": "50Mbit"}]},
    )
    assert (shown["rate_limit_bytes_per_s"], shown["rate_limit"]) == (50_000_000, "400 Mbit/s")
    assert shown["rate_now"] == "50 Mbit/s"  # Monday, 02:30
    assert [one["rate"] for one in shown["rate_windows"]] == ["50 Mbit/s"]
    clock.now += timedelta(hours=1)
    assert proxies.list_all(ctx)[0]["rate_now"] == "400 Mbit/s"
    with ctx.db.read() as s:
        (rule,) = proxy_rates.own_rules(s)
    assert (rule.id, rule.restores) == (f"proxy/{shown['id']}", False)
    proxies.edit(ctx, "default", {"rate_limit": None, "rate_windows": None})
    with ctx.db.read() as s:
        assert proxy_rates.own_rules(s) == []


def test_it_does_not_make_the_proxy_look_around(ctx: Context, seeded: Seeded) -> None:
    del seeded
    proxies.edit(ctx, "default", {"rate_limit": 1_000_000, "rate_restores": True})
    with ctx.db.read() as s:
        assert s.query(OutboxRow).count() == 0
    proxies.edit(ctx, "default", {"rate_limit": None, "max_nfs_hops": 2})
    with ctx.db.read() as s:
        assert [row.kind for row in s.query(OutboxRow)] == ["rescan"]


@pytest.mark.parametrize(
    "change",
    [
        {"rate_limit": "fast"},
        {"rate_limit": 1},
        {"rate_windows": [{"window": WINDOW}]},
        {"rate_windows": [{"window": {"text": "someday"}, "rate": None}]},
        {"rate_restores": "yes"},
    ],
)
def test_what_is_no_rate_is_refused(ctx: Context, seeded: Seeded, change: dict[str, Any]) -> None:
    del seeded
    with pytest.raises(InvalidError, match=next(iter(change))):
        proxies.edit(ctx, "default", change)
