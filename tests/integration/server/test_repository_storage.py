"""Buckets as repositories: their keys, immutability and recovery, through the services."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from backup_server.db.tables import Base, Repository, Session
from backup_server.errors import ConflictError, InvalidError, WrongKeyError
from backup_server.services import repositories, repository_storage, restore_points
from proxy_worker.contracts.agent import WRONG_KEY
from tests.fakes.server import REPOSITORY_PASSWORD, Rig
from transports.vsphere.model import Secret

BUCKET = "s3://backups/site"
KEYS = {"access_key_id": "an-access-key", "secret_access_key": "hush-this-is-secret"}


def bucket(rig: Rig) -> None:
    repositories.add(
        rig.ctx,
        name="cloud",
        location=BUCKET,
        password=Secret(REPOSITORY_PASSWORD),
        storage_secrets=KEYS,
        immutable_days=14,
    )


def test_a_bucket_with_keys_and_immutability(rig: Rig) -> None:
    bucket(rig)
    made = rig.repositories.at[BUCKET]
    assert (made.storage_secrets, made.immutable_days) == (KEYS, 14)
    shown = repositories.get(rig.ctx, "cloud")
    assert (shown["storage_secrets"], shown["immutable_days"]) == (True, 14)
    assert KEYS["secret_access_key"] not in str(shown)
    with rig.ctx.db.engine.connect() as connection:
        for table in Base.metadata.sorted_tables:
            for row in connection.execute(sa.select(table)):
                assert KEYS["secret_access_key"] not in str(row), table.name


def test_keys_are_changed_only_when_they_open_the_bucket(rig: Rig) -> None:
    bucket(rig)
    other = {"access_key_id": "another", "secret_access_key": "another secret"}
    with pytest.raises(ConflictError, match="refuses these keys"):
        repositories.edit(rig.ctx, "cloud", {"storage_secrets": other})
    repositories.check(rig.ctx, "cloud")  # the old ones are still there
    rig.repositories.at[BUCKET].storage_secrets = other
    repositories.edit(rig.ctx, "cloud", {"storage_secrets": other, "immutable_days": 0})
    assert repositories.get(rig.ctx, "cloud")["immutable_days"] == 0
    for wrong in ({"storage_secrets": {"colour": "red"}}, {"immutable_days": -1}):
        with pytest.raises(InvalidError):
            repositories.edit(rig.ctx, "cloud", wrong)


def test_a_point_says_until_when_it_is_immutable(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    repositories.edit(rig.ctx, "r1", {"immutable_days": 7})
    rig.job()
    rig.run()
    [point] = restore_points.list_all(rig.ctx)["items"]
    until = rig.clock.now + timedelta(days=7)
    rig.repository.immutable_until_s[point["id"]] = until.timestamp()
    done = repository_storage.recover(rig.ctx, "r1", rig.clock.now - timedelta(hours=1))
    assert (done["uncovered"], done["restore_points"]) == (3, 1)
    assert rig.repository.recovered_to_s
    [point] = restore_points.list_all(rig.ctx)["items"]
    assert point["immutable_until"] is not None
    with pytest.raises(InvalidError, match="in the past"):
        repository_storage.recover(rig.ctx, "r1", rig.clock.now + timedelta(hours=1))


def test_a_bucket_is_brought_back_behind_a_change_of_the_data_key(rig: Rig) -> None:
    """An administrator changes the keys after an attack, and then recovers."""
    rig.repository.key_epoch = 2
    with rig.ctx.db() as s:
        row = s.scalars(sa.select(Repository)).one()
        row.settings = {**row.settings, "key_epoch": 2}
    repository_storage.recover(rig.ctx, "r1", rig.clock.now - timedelta(hours=1))
    assert rig.drive(repositories.check(rig.ctx, "r1")["id"])["result"] == "success"


def test_a_bucket_of_the_time_before_the_servers_key_waits_for_one_of_that_time(rig: Rig) -> None:
    with rig.ctx.db() as s:
        row = s.scalars(sa.select(Repository)).one()
        row.settings = {**row.settings, "key_epoch": 2}
    rig.repositories.fail("recover", "permanent", "wrong password", reason=WRONG_KEY)
    with pytest.raises(WrongKeyError, match="vmhaul repository key use r1"):
        repository_storage.recover(rig.ctx, "r1", rig.clock.now - timedelta(hours=1))
    # That key opens the repository as it is now.
    assert rig.drive(repositories.check(rig.ctx, "r1")["id"])["result"] == "success"


def test_nothing_is_brought_back_under_a_session(rig: Rig) -> None:
    session = repositories.check(rig.ctx, "r1")
    with rig.ctx.db() as s:
        s.execute(sa.update(Session).values(state="running"))
    with pytest.raises(ConflictError, match=f"used by session {session['id']}"):
        repository_storage.recover(rig.ctx, "r1", rig.clock.now - timedelta(hours=1))
    assert rig.repository.recovered_to_s == []
