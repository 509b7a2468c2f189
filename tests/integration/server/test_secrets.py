"""Who is given which secret, and where none may stand."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from backup_server.db.tables import Base
from backup_server.errors import (
    ForbiddenError,
)
from backup_server.services import (
    proxies,
    sessions,
    task_secrets,
)
from tests.fakes.server import REPOSITORY_PASSWORD, Rig, running_task
from tests.fakes.vsphere import PASSWORD, THUMBPRINT


def test_no_secret_stands_in_the_database(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.run()
    proxy = proxies.add(rig.ctx, name="p2")
    forbidden = [PASSWORD, REPOSITORY_PASSWORD, rig.repository.master_key, proxy["join_token"]]
    with rig.ctx.db.engine.connect() as connection:
        for table in Base.metadata.sorted_tables:
            for row in connection.execute(sa.select(table)):
                for value in row:
                    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
                    assert not any(secret in text for secret in forbidden), table.name


def test_secrets_go_to_the_holder_of_the_lease_only(rig: Rig) -> None:
    task = running_task(rig)
    holder = rig.default_proxy().id
    secrets = task_secrets.redeem(rig.ctx, holder, task.id, 3)
    assert secrets.repository_key == rig.repository.master_key
    assert secrets.vsphere is not None
    assert secrets.vsphere.thumbprint_sha256 == THUMBPRINT
    assert rig.repository.master_key not in repr(secrets)
    again = task_secrets.redeem(rig.ctx, holder, task.id, 3)
    assert again.vsphere is not None
    assert again.vsphere.clone_ticket != secrets.vsphere.clone_ticket
    for proxy_id, task_id, attempt in (
        ("another", task.id, 3),
        (holder, task.id, 2),
        (holder, task.id, 4),
        (holder, "another", 3),
    ):
        with pytest.raises(ForbiddenError):
            task_secrets.redeem(rig.ctx, proxy_id, task_id, attempt)
    rig.clock.advance(31)
    with pytest.raises(ForbiddenError):
        task_secrets.redeem(rig.ctx, holder, task.id, 3)


def test_cancelled_tasks_get_no_secrets(rig: Rig) -> None:
    task = running_task(rig)
    sessions.cancel(rig.ctx, task.session_id)
    with pytest.raises(ForbiddenError):
        task_secrets.redeem(rig.ctx, rig.default_proxy().id, task.id, 3)
