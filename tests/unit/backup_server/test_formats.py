from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_server import formats


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 * 1024**2, "5.0 MiB"),
        (3 * 1024**4, "3.0 TiB"),
        (5000 * 1024**5, "5000.0 PiB"),
    ],
)
def test_size(count: int | None, text: str) -> None:
    assert formats.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.42, "0.4s"),
        (9.96, "10.0s"),
        (59, "59s"),
        (61, "1m 01s"),
        (3700, "1h 01m"),
        (90000, "1d 01h"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert formats.duration(seconds) == text


def test_rate_is_decimal_megabytes() -> None:
    assert formats.rate(12_345_678) == "12.3 MB/s"
    assert formats.rate(None) == "-"


def test_ratio_has_no_answer_without_data() -> None:
    assert formats.ratio(100, 50) == "2.0x"
    assert formats.ratio(100, 0) == "-"
    assert formats.ratio(0, 100) == "-"
    assert formats.ratio(None, None) == "-"


def test_moment_is_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert formats.moment("2026-07-01T22:30:00Z") == "2026-07-02 00:30:00"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert formats.moment(None) == "-"


def test_plural() -> None:
    assert formats.plural(1, "disk") == "1 disk"
    assert formats.plural(0, "disk") == "0 disks"


@given(st.integers(min_value=0, max_value=2**63))
def test_sizes_stay_short(count: int) -> None:
    assert len(formats.size(count)) <= 12


@given(st.floats(min_value=0, max_value=10**9))
def test_durations_have_at_most_two_parts(seconds: float) -> None:
    assert 1 <= len(formats.duration(seconds).split()) <= 2


DECISION = {
    "proxy": "p1",
    "mode": "hotadd",
    "modes": [{"mode": "direct-nfs", "reason": "not NFS"}, {"mode": "warp", "reason": "newer"}],
    "candidates": [
        {
            "proxy": "p1",
            "name": "px",
            "mode": "hotadd",
            "accepted": True,
            "reason": "",
            "used": 1,
            "slots": 2,
        },
        {
            "proxy": "p2",
            "name": "py",
            "mode": "nbdssl",
            "accepted": True,
            "reason": "",
            "used": 0,
            "slots": 4,
        },
        {
            "proxy": "p2",
            "name": "py",
            "mode": "hotadd",
            "accepted": False,
            "reason": "no VM",
            "used": 0,
            "slots": 4,
        },
    ],
}


def test_candidates_stand_best_mode_first() -> None:
    rows = formats.candidate_rows(DECISION)
    assert [(row["mode"], row["proxy"], row["verdict"]) for row in rows] == [
        ("direct-nfs", "any", "refused"),
        ("hotadd", "px", "chosen"),
        ("hotadd", "py", "refused"),
        ("nbdssl", "py", "accepted"),
        ("warp", "any", "refused"),
    ]
    assert rows[1]["slots"] == "1 of 2"
    assert formats.candidate_rows({}) == []


def test_which_vm_a_proxy_is() -> None:
    vm = {"name": "px", "moref": "vm-1", "vcenter": "a", "datacenter": "DC0", "host": "host-1"}
    assert formats.proxy_vms({"vms": []}) == "none that a vCenter knows"
    assert formats.proxy_vms({"vms": [vm]}) == "px (vm-1) of a, DC0, host-1"
    assert "not certain" in formats.proxy_vms({"vms": [vm, {**vm, "moref": "vm-2"}]})
    assert "not certain" not in formats.proxy_vms({"vms": [vm, {**vm, "vcenter": "b"}]})
