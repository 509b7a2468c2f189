"""One join token for many new proxies: what it may do, and what not."""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Proxy, Setting
from backup_server.errors import ConflictError, UnauthorizedError
from backup_server.services import broker_users, fleet_tokens, proxies
from backup_server.services.context import Context
from proxy_worker.contracts.join_token import parse_join_token
from tests.support.history import Clock
from transports.vsphere.model import Secret

KEY = "ab" * 32


@pytest.fixture
def file(ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "token"
    object.__setattr__(ctx, "settings", ctx.settings.model_copy(update={"fleet_join_file": str(path)}))
    monkeypatch.setattr(broker_users, "sync", lambda ctx: None)
    return path


def join(ctx: Context, file: Path, name: str, key: str = KEY) -> str:
    token = Secret(parse_join_token(file.read_text()).secret)
    return proxies.enrol(
        ctx, token=token, name=name, signing_key=key, sealing_key=key, version="unknown"
    )


def test_many_join_with_one_token_and_each_is_a_proxy_of_its_own(ctx: Context, file: Path) -> None:
    fleet_tokens.renew(ctx)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    ids = {join(ctx, file, f"box-{n}", f"{n:02x}" * 32) for n in range(3)}
    assert len(ids) == 3
    with ctx.db.read() as s:
        rows = [s.get_one(Proxy, one) for one in ids]
        assert {row.name for row in rows} == {"box-0", "box-1", "box-2"}
        assert not any(row.local or row.join_token_hash for row in rows)
        assert len({row.broker_credential_id for row in rows}) == 3


def test_it_never_takes_the_place_of_a_proxy_that_is_there(ctx: Context, file: Path) -> None:
    fleet_tokens.renew(ctx)
    taken = join(ctx, file, "box")
    for name in ("box", "default"):
        with pytest.raises(UnauthorizedError):
            join(ctx, file, name, "cd" * 32)
    with ctx.db.read() as s:
        assert s.get_one(Proxy, taken).signing_key == KEY
    with pytest.raises(UnauthorizedError):
        join(ctx, file, "no/name at all")


def test_two_that_take_a_name_at_the_same_moment_are_told_so(
    ctx: Context, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet_tokens.renew(ctx)
    flush = DbSession.flush
    other = "cd" * 32

    def late(s: DbSession, objects: Any = None) -> None:
        if any(isinstance(one, Proxy) and one.name == "box" for one in s.new):
            # The other one comes between the look at the name and taking it.
            monkeypatch.setattr(DbSession, "flush", flush)
            s.add(Proxy(**{**columns(s), "id": "another", "signing_key": other}))
        flush(s, objects)

    def columns(s: DbSession) -> dict[str, Any]:
        [one] = [one for one in s.new if isinstance(one, Proxy)]
        return {c.key: getattr(one, c.key) for c in sa.inspect(Proxy).column_attrs if c.key != "id"}

    monkeypatch.setattr(DbSession, "flush", late)
    with pytest.raises(ConflictError, match="at this moment"):
        join(ctx, file, "box")
    assert join(ctx, file, "box")


def test_a_lost_answer_is_given_again_to_the_same_keys(ctx: Context, file: Path) -> None:
    fleet_tokens.renew(ctx)
    first = join(ctx, file, "box")
    assert join(ctx, file, "box") == first
    with pytest.raises(UnauthorizedError):
        join(ctx, file, "box", "cd" * 32)


def test_it_is_renewed_and_the_one_before_works_for_a_while(
    ctx: Context, clock: Clock, file: Path, tmp_path: Path
) -> None:
    fleet_tokens.renew(ctx)
    first = tmp_path / "first"
    first.write_text(file.read_text())
    fleet_tokens.renew(ctx)
    assert file.read_text() == first.read_text()
    life = timedelta(seconds=ctx.settings.join_token_ttl_s)
    clock.now += life + timedelta(seconds=1)
    fleet_tokens.renew(ctx)
    assert file.read_text() != first.read_text()
    join(ctx, first, "late")
    clock.now += life
    with pytest.raises(UnauthorizedError):
        join(ctx, first, "too-late")
    join(ctx, file, "in-time")


def test_a_token_whose_file_is_gone_is_made_anew_and_nothing_is_made_where_none_is_wanted(
    ctx: Context, file: Path
) -> None:
    fleet_tokens.renew(ctx)
    file.unlink()
    fleet_tokens.renew(ctx)
    assert file.exists()
    object.__setattr__(ctx, "settings", ctx.settings.model_copy(update={"fleet_join_file": ""}))
    file.unlink()
    fleet_tokens.renew(ctx)
    assert not file.exists()


def test_the_database_knows_no_secret(ctx: Context, file: Path) -> None:
    fleet_tokens.renew(ctx)
    secret = parse_join_token(file.read_text()).secret
    with ctx.db.read() as s:
        assert secret not in s.get_one(Setting, fleet_tokens.ROW).value
