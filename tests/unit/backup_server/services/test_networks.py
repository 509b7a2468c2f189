from __future__ import annotations

import pytest

from backup_server.services.networks import between, normal_form, parse_address, parse_ranges


def covers(source: list[str], target: list[str], here: list[str], there: list[str]) -> bool:
    return between(
        parse_ranges(source),
        parse_ranges(target),
        [parse_address(one) for one in here],
        [parse_address(one) for one in there],
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("192.0.2.0/24", "192.0.2.0/24"),
        (" 192.0.2.7 ", "192.0.2.7"),
        ("192.0.2.0-192.0.2.255", "192.0.2.0/24"),
        ("192.0.2.1 - 192.0.2.9", "192.0.2.1-192.0.2.9"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("2001:db8::1-2001:db8::ff", "2001:db8::1-2001:db8::ff"),
        ("ANY", "any"),
    ],
)
def test_what_people_write_has_one_form(text: str, shown: str) -> None:
    assert normal_form(text) == shown
    assert normal_form(shown) == shown


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("192.0.2.1/24", "host bits"),
        ("192.0.2.9-192.0.2.1", "ends before"),
        ("192.0.2.1-2001:db8::1", "different versions"),
        ("office", "office"),
        ("", "neither"),
    ],
)
def test_what_is_none_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        normal_form(text)


def test_a_rule_holds_in_both_directions() -> None:
    office, branch = ["10.0.0.0/16"], ["10.9.0.1-10.9.0.20"]
    assert covers(office, branch, ["10.0.1.1"], ["10.9.0.20"])
    assert covers(office, branch, ["10.9.0.1"], ["10.0.1.1"])
    assert not covers(office, branch, ["10.0.1.1"], ["10.9.0.21"])
    assert not covers(office, branch, ["10.0.1.1"], ["10.0.1.2"])
    assert covers(["any"], ["any"], ["2001:db8::5/64"], ["2001:db8::6"])


def test_any_address_of_a_machine_counts() -> None:
    assert covers(["10.0.0.0/8"], ["192.0.2.0/24"], ["172.16.0.1/16", "10.1.1.1/8"], ["192.0.2.4"])


def test_what_stays_on_one_machine_crosses_nothing() -> None:
    assert not covers(["any"], ["any"], ["10.0.0.1/24", "10.1.0.1/24"], ["10.1.0.1"])
    assert not covers(["any"], ["any"], ["10.0.0.1"], ["127.0.0.1"])
    assert not covers(["any"], ["any"], ["10.0.0.1"], ["::1"])


def test_an_end_that_is_not_known_is_covered_by_nothing() -> None:
    assert not covers(["any"], ["any"], ["10.0.0.1"], [])


def test_ipv4_in_the_dress_of_ipv6_is_ipv4() -> None:
    assert covers(["10.0.0.0/8"], ["192.0.2.0/24"], ["::ffff:10.0.0.1"], ["192.0.2.4"])
