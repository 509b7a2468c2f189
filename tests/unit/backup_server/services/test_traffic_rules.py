from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from backup_server.errors import ConflictError, InvalidError, NotFoundError
from backup_server.services import traffic_rules
from backup_server.services.context import Context
from backup_server.services.storage_places import Place, _of_directory, has_directory, places_of
from backup_server.services.traffic_rules import parse_rate, rate_text

BODY: dict[str, Any] = {
    "name": "branch",
    "source": ["10.0.0.0/8"],
    "target": ["192.0.2.1-192.0.2.255", "192.0.2.0"],
    "rate": "200Mbit",
}


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("200Mbit", 25_000_000),
        ("200 Mbit/s", 25_000_000),
        ("50MB/s", 50_000_000),
        ("50MiB/s", 50 << 20),
        ("1Gbps", 125_000_000),
        ("1.5Gbit", 187_500_000),
        (64_000, 64_000),
        ("50000000", 50_000_000),
        ("unlimited", None),
        (None, None),
    ],
)
def test_rates_as_people_write_them(text: Any, bytes_per_s: int | None) -> None:
    assert parse_rate(text) == bytes_per_s


@pytest.mark.parametrize("text", ["fast", "50M", "", "-1", True, 1.5, "1kbit", "9TB/s"])
def test_what_is_no_rate_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match=r"must be|is not"):
        parse_rate(text)


def test_rates_are_shown_in_bits() -> None:
    assert rate_text(25_000_000) == "200 Mbit/s"
    assert rate_text(187_500_000) == "1.5 Gbit/s"
    assert rate_text(None) == "unlimited"


def test_a_rule_is_kept_edited_and_removed(ctx: Context) -> None:
    added = traffic_rules.add(ctx, BODY)
    assert added["target"] == ["192.0.2.1-192.0.2.255", "192.0.2.0"]
    assert (added["rate_bytes_per_s"], added["rate"]) == (25_000_000, "200 Mbit/s")
    assert not added["restores"]
    window = {
        "time_zone": "Europe/Berlin",
        "hours": [{"days": ["mon"], "from": "03:00", "to": "04:00"}],
    }
    edited = traffic_rules.edit(
        ctx, "branch", {"windows": [{"window": window, "rate": None}], "restores": True}
    )
    assert edited["rate_now"] == "unlimited"  # Monday, 03:30 in Berlin
    assert edited["windows"][0]["hours"] == "mon 03:00-04:00"
    assert traffic_rules.edit(ctx, "branch", {"rate": "8Mbit"})["windows"] == edited["windows"]
    assert [one["name"] for one in traffic_rules.list_all(ctx)] == ["branch"]
    traffic_rules.remove(ctx, "branch")
    with pytest.raises(NotFoundError, match="no traffic rule 'branch'"):
        traffic_rules.get(ctx, "branch")


def test_a_name_is_there_once(ctx: Context) -> None:
    traffic_rules.add(ctx, BODY)
    with pytest.raises(ConflictError, match="branch"):
        traffic_rules.add(ctx, BODY)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"source": []}, "source"),
        ({"target": ["office"]}, "target"),
        ({"rate": "fast"}, "rate"),
        ({"rate": None}, "rate"),
        ({"windows": [{"window": None, "rate": 1}]}, "windows"),
        ({"windows": [1]}, "windows"),
        ({"name": "a/b"}, "name"),
        ({"speed": 1}, "speed"),
    ],
)
def test_what_cannot_be_accepted_is_named(ctx: Context, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidError) as caught:
        traffic_rules.add(ctx, {**BODY, **changes})
    assert field in caught.value.details


def test_a_rule_for_hours_only_has_no_rate_outside_of_them(ctx: Context) -> None:
    hours = {"hours": [{"days": ["mon"], "from": "08:00", "to": "18:00"}]}
    traffic_rules.add(ctx, {**BODY, "rate": None, "windows": [{"window": hours, "rate": "8Mbit"}]})
    with ctx.db.read() as s:
        (rule,) = traffic_rules.enabled_rules(s)
    assert rule.rate_at(datetime(2026, 11, 23, 9, tzinfo=UTC)) == 1_000_000
    assert rule.rate_at(datetime(2026, 11, 23, 19, tzinfo=UTC)) is None


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (
            "s3://b/p?endpoint=https://s.example:9000",
            [Place(host="s.example", clear=False, how="https")],
        ),
        ("s3://b?endpoint=http://10.0.0.1", [Place(host="10.0.0.1", clear=True, how="http")]),
        ("s3://b?region=eu-x-1", [Place(host="s3.eu-x-1.amazonaws.com", clear=False, how="https")]),
        ("az://c?account=me", [Place(host="me.blob.core.windows.net", clear=False, how="https")]),
        ("gs://b", [Place(host="storage.googleapis.com", clear=False, how="https")]),
        ("/", [Place(host="", clear=False, how="a directory")]),
        ("ftp://x", []),
        ("s3://b?endpoint=http://[", []),
        (
            'scale-out:[{"name":"a","location":"gs://b"},{"name":"c","location":"s3://b?endpoint=http://h"}]',
            [
                Place(host="storage.googleapis.com", clear=False, how="https"),
                Place(host="h", clear=True, how="http"),
            ],
        ),
        ("scale-out:nonsense", []),
    ],
)
def test_where_a_repository_is(location: str, expected: list[Place]) -> None:
    assert list(places_of(location)) == expected


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/srv/backups", True),
        ("/srv/backups?keeper=/run/keeper", True),
        ("s3://bucket/place?endpoint=https://127.0.0.1:9000", False),
        ('scale-out:[{"location": "s3://bucket"}, {"location": "az://container"}]', False),
        ('scale-out:[{"location": "s3://bucket"}, {"location": "/srv/backups"}]', True),
        ("scale-out:?", False),
        ("", False),
    ],
)
def test_what_needs_a_directory(location: str, *, expected: bool) -> None:
    assert has_directory(location) is expected


def test_a_directory_on_nfs_is_on_the_server() -> None:
    mounts = [
        ("/dev/sda1", "/", "ext4"),
        ("filer:/vol/b", "/backup", "nfs4"),
        ("[2001:db8::1]:/x", "/six", "nfs"),
        ("/dev/sdb", "/backup/local", "xfs"),
    ]
    assert _of_directory("/backup/vmhaul", mounts) == Place(host="filer", clear=True, how="NFS")
    assert _of_directory("/six", mounts).host == "2001:db8::1"
    assert _of_directory("/backup/local/r", mounts).host == ""
    assert _of_directory("/backups", mounts).host == ""
