from __future__ import annotations

from datetime import UTC, datetime, timedelta

from backup_server.web.logins import LINK_S, LOGIN_S, MAX_LINKS, Logins
from transports.vsphere.model import Secret


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 23, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def _logins(clock: Clock, token: str = "t" * 43) -> Logins:
    return Logins(Secret(token), clock)


def _code(link: dict[str, str]) -> str:
    return link["path"].partition("code=")[2]


def test_a_link_works_once() -> None:
    logins = _logins(Clock())
    code = _code(logins.new_link())
    assert logins.redeem(code)
    assert not logins.redeem(code)
    assert not logins.redeem("guessed")


def test_a_link_grows_old() -> None:
    clock = Clock()
    logins = _logins(clock)
    code = _code(logins.new_link())
    clock.now += timedelta(seconds=LINK_S + 1)
    assert not logins.redeem(code)


def test_links_do_not_pile_up() -> None:
    logins = _logins(Clock())
    codes = [_code(logins.new_link()) for _ in range(MAX_LINKS + 5)]
    assert sum(logins.redeem(code) for code in codes) == MAX_LINKS


def test_a_login_survives_a_restart_and_ends_in_time() -> None:
    clock = Clock()
    cookie = _logins(clock).new_cookie()
    assert _logins(clock).is_valid(cookie)
    clock.now += timedelta(seconds=LOGIN_S + 1)
    assert not _logins(clock).is_valid(cookie)


def test_a_new_token_ends_all_logins() -> None:
    clock = Clock()
    cookie = _logins(clock).new_cookie()
    assert not _logins(clock, "another").is_valid(cookie)


def test_a_login_cannot_be_prolonged() -> None:
    clock = Clock()
    logins = _logins(clock)
    expires, rest = logins.new_cookie().split(".", 1)
    assert not logins.is_valid(f"{int(expires) + 1}.{rest}")
    for broken in ("", ".", "1.2.3", "x.y.z"):
        assert not logins.is_valid(broken)


def test_a_form_belongs_to_its_login() -> None:
    logins = _logins(Clock())
    mine, other = logins.new_cookie(), logins.new_cookie()
    assert logins.form_is_right(mine, logins.form_token(mine))
    assert not logins.form_is_right(mine, logins.form_token(other))
    assert not logins.form_is_right(mine, "")


def test_the_token_is_compared_as_a_whole() -> None:
    logins = _logins(Clock(), "abc")
    assert logins.token_is_right(" abc\n")
    assert not logins.token_is_right("ab")
    assert not logins.token_is_right("äbc")
