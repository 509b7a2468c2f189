"""What the command line makes of what was typed."""

from __future__ import annotations

import pytest

from backup_server import config
from backup_server.cli import client, exits, job_options, sizes
from backup_server.cli.exits import CliError, Exit
from backup_server.cli.vcenter import split_address


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4194304", 4194304),
        ("1MiB", 1 << 20),
        ("512K", 512 << 10),
        ("1.5 GiB", 3 << 29),
        ("2MB", 2_000_000),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert sizes.parse_size(text) == count


@pytest.mark.parametrize("text", ["", "MiB", "1 banana", "0", "-1K", "0.3"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(CliError) as caught:
        sizes.parse_size(text)
    assert caught.value.code is Exit.USAGE


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("vc.example.com", ("vc.example.com", 443)),
        ("vc:8443", ("vc", 8443)),
        ("[fd00::1]:8443", ("fd00::1", 8443)),
        ("[fd00::1]", ("fd00::1", 443)),
        ("fd00::1", ("fd00::1", 443)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert split_address(text) == address


@pytest.mark.parametrize("text", ["", ":443", "vc:https", "https://vc/sdk", "vc/ui", "me@vc"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(CliError):
        split_address(text)


def test_the_data_directory_is_the_settings_one() -> None:
    assert client.default_data_dir() == config.default_data_dir()


def test_selectors_keep_their_kinds() -> None:
    chosen = job_options.Chosen(vm=("web*", "db01"), resource_pool=("DC0/Gold",), tag=("nightly",))
    assert chosen.selectors() == [
        {"type": "vm", "name": "web*"},
        {"type": "vm", "name": "db01"},
        {"type": "resource-pool", "name": "DC0/Gold"},
        {"type": "tag", "name": "nightly"},
    ]
    assert job_options.Chosen(everything=True).selectors() == [{"type": "all", "name": "*"}]


def test_a_disk_may_hold_colons() -> None:
    assert job_options.excluded_disks(["db*:SCSI (0:1)"]) == [{"vm": "db*", "disk": "SCSI (0:1)"}]
    with pytest.raises(CliError, match="not VM:DISK"):
        job_options.excluded_disks(["db01"])


def test_an_edited_selection_keeps_what_was_not_named() -> None:
    old = {
        "include": [{"type": "all", "name": "*"}],
        "exclude": [{"type": "vm", "name": "test*"}],
        "exclude_disks": [],
    }
    new = job_options.selection(job_options.Chosen(vm=("a",)), job_options.Chosen(), (), old)
    assert new["include"] == [{"type": "vm", "name": "a"}]
    assert new["exclude"] == old["exclude"]


def test_schedules() -> None:
    made = job_options.schedule("30 2 * * *", "Europe/Berlin", job_options.Missed.SKIP)
    assert made == {"cron": "30 2 * * *", "time_zone": "Europe/Berlin", "missed": "skip"}
    assert job_options.schedule(None, None, None) is None
    assert job_options.schedule(None, "UTC", None, made) == {**made, "time_zone": "UTC"}
    with pytest.raises(CliError, match="need --schedule"):
        job_options.schedule(None, "UTC", None)


def test_retention_is_one_or_the_other() -> None:
    kept = job_options.Kept
    assert job_options.retention(kept(keep=7)) == {"keep": 7}
    assert job_options.retention(kept(keep_days=30)) == {"days": 30}
    assert job_options.retention(kept()) is None
    with pytest.raises(CliError, match="exclude each other"):
        job_options.retention(kept(keep=7, keep_days=30))


def test_retention_keeps_what_no_option_names() -> None:
    kept = job_options.Kept
    old = {"keep": 7, "weekly": 4, "gone_days": 90}
    assert job_options.retention(kept(monthly=12), old) == {**old, "monthly": 12}
    assert job_options.retention(kept(keep_days=30), old) == {"days": 30, "weekly": 4, "gone_days": 90}
    assert job_options.retention(kept(gone_days=0), old) == {"keep": 7, "weekly": 4, "gone_days": None}
    assert job_options.retention(kept(yearly=2)) == {"keep": 14, "yearly": 2}
    sunday = kept(weekly=1, week_start=job_options.Weekday.SUNDAY)
    assert job_options.retention(sunday) == {"keep": 14, "weekly": 1, "week_start": "sunday"}


def test_retention_in_words() -> None:
    assert job_options.describe_retention({"days": 30, "monthly": 12}) == "30 days, 12 monthly"
    assert job_options.describe_retention({"keep": 7}) == "last 7"


def test_every_exit_code_has_a_meaning() -> None:
    assert set(exits.MEANINGS) == set(Exit)
    assert all(str(code.value) in exits.help_text() for code in Exit)


@pytest.mark.parametrize(
    ("result", "code"), [("success", 0), ("warning", 3), ("failed", 4), ("cancelled", 6), (None, 4)]
)
def test_exit_code_of_a_session(result: str | None, code: int) -> None:
    assert exits.of_session({"result": result}) == code
