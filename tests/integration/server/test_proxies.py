"""Proxies as the doors use them."""

from __future__ import annotations

import json
import stat
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from backup_server.db.tables import Proxy
from backup_server.errors import (
    ConflictError,
    InvalidError,
    UnauthorizedError,
)
from backup_server.services import (
    jobs,
    proxies,
)
from tests.fakes.server import Rig, running_task
from transports.vsphere.model import Secret

KEYS = {"signing_key": "ab" * 32, "sealing_key": "cd" * 32}


def test_first_start_makes_the_default_proxy(rig: Rig) -> None:
    [shown] = proxies.list_all(rig.ctx)
    assert (shown["name"], shown["local"], shown["state"], shown["enrolled"]) == (
        "default", True, "never-seen", False,
    )  # fmt: skip
    token_file = rig.settings.proxies_dir / "default" / "join-token"
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    content = json.loads((rig.settings.run_dir / "local-proxies.json").read_text())
    assert content == {
        "log_format": "console",
        "proxies": [
            {
                "name": "default",
                "id": shown["id"],
                "slots": rig.settings.default_proxy_slots,
                # It learns it when it enrols.
                "broker_url": "",
            }
        ],
    }


def test_removed_default_proxy_does_not_come_back(rig: Rig) -> None:
    proxies.remove(rig.ctx, "default")
    told = json.loads((rig.settings.run_dir / "local-proxies.json").read_text())
    assert told["proxies"] == []
    rig.restart()
    assert proxies.list_all(rig.ctx) == []


def test_lost_join_token_of_a_local_proxy_is_made_anew(rig: Rig) -> None:
    token_file = rig.settings.proxies_dir / "default" / "join-token"
    token_file.unlink()
    rig.restart()
    token = Secret(token_file.read_text().strip())
    proxy_id = proxies.enrol(rig.ctx, token=token, name="default", version="1", **KEYS)
    # Its worker removes the file when it has kept the answer; until then it asks again with it.
    assert token_file.exists()
    rig.restart()
    assert proxies.enrol(rig.ctx, token=token, name="default", version="1", **KEYS) == proxy_id
    token_file.unlink()
    rig.restart()
    assert not token_file.exists()


def heard(rig: Rig, proxy_id: str) -> None:
    with rig.ctx.db() as s:
        s.get_one(Proxy, proxy_id).last_seen_at = rig.ctx.clock()


def test_whoever_missed_the_answer_asks_again_and_nobody_else(rig: Rig) -> None:
    token = Secret(proxies.add(rig.ctx, name="p2")["join_token"])
    joining: dict[str, Any] = {"token": token, "name": "p2", "version": "1", **KEYS}
    proxy_id = proxies.enrol(rig.ctx, **joining)
    password = rig.rows(Proxy, id=proxy_id)[0].broker_credential_id
    assert proxies.enrol(rig.ctx, **joining) == proxy_id
    assert rig.rows(Proxy, id=proxy_id)[0].broker_credential_id == password
    for other in (
        {"signing_key": "ef" * 32},
        {"sealing_key": "ef" * 32},
        {"name": "default"},
        {"token": Secret("vmhj_another")},
    ):
        with pytest.raises(UnauthorizedError):
            proxies.enrol(rig.ctx, **{**joining, **other})
    # It had the answer: the token is spent for good.
    heard(rig, proxy_id)
    with pytest.raises(UnauthorizedError):
        proxies.enrol(rig.ctx, **joining)
    # Joining anew begins all this again; being heard before does not count.
    rig.clock.advance(60)
    joining["token"] = Secret(proxies.new_token(rig.ctx, "p2")["join_token"])
    for _ in range(2):
        assert proxies.enrol(rig.ctx, **joining) == proxy_id
    rig.clock.advance(rig.settings.join_token_ttl_s)
    with pytest.raises(UnauthorizedError):
        proxies.enrol(rig.ctx, **joining)
    # Revoked, it has no way back with it.
    joining["token"] = Secret(proxies.new_token(rig.ctx, "p2")["join_token"])
    proxies.enrol(rig.ctx, **joining)
    proxies.revoke(rig.ctx, "p2")
    with pytest.raises(UnauthorizedError):
        proxies.enrol(rig.ctx, **joining)


def test_enrolment_works_once_and_in_time(rig: Rig) -> None:
    token = Secret(proxies.add(rig.ctx, name="p2", slots=4)["join_token"])
    for wrong in ({"token": Secret("vmhj_wrong")}, {"name": "p3"}):
        with pytest.raises(UnauthorizedError):
            proxies.enrol(rig.ctx, **{"token": token, "name": "p2", "version": "1", **KEYS, **wrong})
    with pytest.raises(InvalidError):
        proxies.enrol(rig.ctx, token=token, name="p2", version="1", signing_key="x", sealing_key="y")
    proxy_id = proxies.enrol(rig.ctx, token=token, name="p2", version="1", **KEYS)
    assert rig.rows(Proxy, id=proxy_id)[0].signing_key == KEYS["signing_key"]
    with pytest.raises(UnauthorizedError):
        proxies.enrol(
            rig.ctx, token=token, name="p2", version="1", **{**KEYS, "signing_key": "ef" * 32}
        )
    late = Secret(proxies.add(rig.ctx, name="p3")["join_token"])
    rig.clock.advance(rig.settings.join_token_ttl_s)
    with pytest.raises(UnauthorizedError):
        proxies.enrol(rig.ctx, token=late, name="p3", version="1", **KEYS)


def test_new_token_ends_trust_in_old_keys(rig: Rig) -> None:
    token = Secret(proxies.add(rig.ctx, name="p2")["join_token"])
    proxies.enrol(rig.ctx, token=token, name="p2", version="1", **KEYS)
    shown = proxies.new_token(rig.ctx, "p2")
    assert (shown["enrolled"], shown["join_token"] != token.reveal()) == (False, True)


def test_proxy_add_edit_remove(rig: Rig) -> None:
    for name in ("", "a b", "../x", "x" * 64):
        with pytest.raises(InvalidError):
            proxies.add(rig.ctx, name=name)
    with pytest.raises(ConflictError):
        proxies.add(rig.ctx, name="default")
    with pytest.raises(InvalidError):
        proxies.add(rig.ctx, name="p2", slots=1000)
    proxies.add(rig.ctx, name="p2", local=True)
    shown = proxies.edit(rig.ctx, "p2", {"slots": 7, "modes": ["nbd", "nbdssl"], "description": "x"})
    assert (shown["slots"], shown["modes"]) == (7, ["nbdssl", "nbd"])
    content = json.loads((rig.settings.run_dir / "local-proxies.json").read_text())
    assert [entry["slots"] for entry in content["proxies"]] == [2, 7]
    proxies.edit(rig.ctx, "p2", {"enabled": False})
    content = json.loads((rig.settings.run_dir / "local-proxies.json").read_text())
    # Its worker goes on: what runs on it ends in peace, it only gets nothing new.
    assert [entry["name"] for entry in content["proxies"]] == ["default", "p2"]
    for changes in ({"modes": ["warp"]}, {"slots": "many"}, {"enabled": 1}, {"colour": "red"}):
        with pytest.raises(InvalidError):
            proxies.edit(rig.ctx, "p2", changes)
    rig.job(proxies=["p2"])
    with pytest.raises(ConflictError, match="job1"):
        proxies.remove(rig.ctx, "p2")
    jobs.edit(rig.ctx, "job1", {"proxies": []})
    proxies.remove(rig.ctx, "p2")
    assert [row["name"] for row in proxies.list_all(rig.ctx)] == ["default"]


def test_busy_proxy_is_not_removed(rig: Rig) -> None:
    running_task(rig)
    assert proxies.get(rig.ctx, "default")["running"] == 1
    with pytest.raises(ConflictError, match="1 tasks"):
        proxies.remove(rig.ctx, "default")


def test_proxy_states(rig: Rig) -> None:
    def seen(seconds_ago: float, enabled: bool = True) -> str:
        with rig.ctx.db() as s:
            row = s.scalars(sa.select(Proxy)).one()
            row.last_seen_at = rig.clock.now - timedelta(seconds=seconds_ago)
            row.enabled = enabled
        return str(proxies.get(rig.ctx, "default")["state"])

    assert [seen(1), seen(1, enabled=False), seen(1000)] == ["online", "drained", "offline"]
    running_task(rig)
    assert seen(1, enabled=False) == "draining"
