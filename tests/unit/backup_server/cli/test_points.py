from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from backup_server.cli import points
from backup_server.cli.exits import CliError

ID = "1a2b3c4d-0000-4000-8000-000000000001"


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        (ID, points.ById(start=ID)),
        ("1A2B", points.ById(start="1a2b")),
        ("db01@latest", points.ByAge(vm="db01", number=1)),
        ("db01@1", points.ByAge(vm="db01", number=1)),
        ("db01@12", points.ByAge(vm="db01", number=12)),
        ("a@b@2", points.ByAge(vm="a@b", number=2)),
        ("db 01@2026-11-23", points.ByDay(vm="db 01", day=date(2026, 11, 23))),
    ],
)
def test_parse(text: str, ref: points.PointRef) -> None:
    assert points.parse_point(text) == ref


@pytest.mark.parametrize(
    "text", ["", "web01", "abc", "@latest", "db01@", "db01@0", "db01@-1", "db01@yesterday"]
)
def test_what_is_no_reference_is_told_the_forms(text: str) -> None:
    with pytest.raises(CliError, match=r"VM@latest, VM@2"):
        points.parse_point(text)


def _point(number: int, created_at: str, owner: str = "uuid-1") -> dict[str, Any]:
    return {"id": f"{number}", "created_at": created_at, "instance_uuid": owner}


NEWEST_FIRST = [
    _point(3, "2026-11-23T20:00:00Z"),
    _point(2, "2026-11-23T02:00:00Z"),
    _point(1, "2026-11-22T02:00:00Z"),
]


def _day(text: str) -> date:
    return date.fromisoformat(text[:10])


def test_the_newest_is_number_one() -> None:
    chosen = points.choose_point(points.ByAge(vm="db01", number=1), NEWEST_FIRST, _day)
    assert chosen["id"] == "3"
    chosen = points.choose_point(points.ByAge(vm="db01", number=3), NEWEST_FIRST, _day)
    assert chosen["id"] == "1"


def test_a_day_means_its_newest_point() -> None:
    ref = points.ByDay(vm="db01", day=date(2026, 11, 23))
    assert points.choose_point(ref, NEWEST_FIRST, _day)["id"] == "3"


def test_what_is_not_there_names_what_is() -> None:
    with pytest.raises(CliError, match="only 3 restore points"):
        points.choose_point(points.ByAge(vm="db01", number=4), NEWEST_FIRST, _day)
    with pytest.raises(CliError, match="2026-11-23, 2026-11-22"):
        points.choose_point(points.ByDay(vm="db01", day=date(2026, 1, 1)), NEWEST_FIRST, _day)
    with pytest.raises(CliError, match="has no restore points"):
        points.choose_point(points.ByAge(vm="db01", number=1), [], _day)


def test_two_vms_of_one_name_are_not_guessed_between() -> None:
    mixed = [*NEWEST_FIRST, _point(9, "2026-11-20T00:00:00Z", "uuid-2")]
    with pytest.raises(CliError, match="2 VMs of the name 'db01'"):
        points.choose_point(points.ByAge(vm="db01", number=1), mixed, _day)


def test_a_session_is_named_by_its_id_its_beginning_or_as_the_latest() -> None:
    assert [points.session_ref(text) for text in ("ABCD", "latest")] == ["abcd", "latest"]
    for wrong in ("abc", "nightly", "../jobs"):
        with pytest.raises(CliError, match="is not a session"):
            points.session_ref(wrong)
