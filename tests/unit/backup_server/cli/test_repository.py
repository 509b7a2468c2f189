from __future__ import annotations

from typing import Any

import pytest

from backup_server.cli import sizes
from backup_server.cli.exits import CliError
from backup_server.cli.repository import show
from backup_server.cli.repository.edit import verification

OLD: dict[str, Any] = {
    "schedule": {"cron": "0 12 * * *", "time_zone": "UTC", "missed": "skip"},
    "sample_share": 0.1,
    "read_data": True,
}


def test_a_share() -> None:
    assert sizes.parse_share("5%", "--sample") == sizes.parse_share("0.05", "--sample") == 0.05
    for text in ("0", "0%", "101%", "-1", "x", "%"):
        with pytest.raises(CliError, match="is no share"):
            sizes.parse_share(text, "--sample")


def test_verification_from_its_options() -> None:
    made = verification(None, "week", "Europe/Berlin", "5%")
    assert made == {
        "schedule": {"cron": "0 12 * * 6", "time_zone": "Europe/Berlin"},
        "sample_share": 0.05,
        "read_data": True,
    }
    assert verification(OLD, "never", None, None) is None
    assert verification(OLD, "30 3 * * 1", None, None) == {
        **OLD,
        "schedule": {**OLD["schedule"], "cron": "30 3 * * 1"},
    }
    assert verification(OLD, None, None, "auto") == {**OLD, "sample_share": None}
    structure = verification(OLD, None, None, "structure")
    assert structure == {**OLD, "sample_share": None, "read_data": False}
    with pytest.raises(CliError, match="need --verify-every"):
        verification(None, None, None, "5%")


def test_verification_in_words() -> None:
    assert show.describe_verification(OLD) == "0 12 * * * (UTC), 0.1 of the data"
    auto = {**OLD, "sample_share": None}
    assert show.describe_verification(auto) == "0 12 * * * (UTC), all data every 30 days"
    assert show.describe_verification({**OLD, "read_data": False}).endswith("structure alone")
    assert "--verify-every" in show.describe_verification(None)


def test_the_last_check_in_words() -> None:
    check = {
        "result": "failed",
        "finished_at": "2026-03-02T12:00:00Z",
        "problems": 2,
        "confidence": "so sure",
        "read_data": True,
    }
    assert show.describe_check(None) == "never"
    assert show.describe_check(check).endswith("; 2 problems; so sure")
    plain = {**check, "problems": 0, "confidence": "", "read_data": False}
    assert show.describe_check(plain).endswith("; structure alone, no data read")


def test_storage_without_a_limit() -> None:
    assert show.free({"free_bytes": 1 << 60}) == "no limit"
    assert show.free({"free_bytes": 1 << 30}) == "1.0 GiB"
    assert show.free({"free_bytes": None}) == "-"
