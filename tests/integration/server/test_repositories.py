"""Repositories as the doors use them."""

from __future__ import annotations

from typing import Any

import pytest

from backup_server.errors import (
    ConflictError,
    InvalidError,
    UnavailableError,
)
from backup_server.services import (
    jobs,
    repositories,
)
from tests.fakes.server import LOCATION, REPOSITORY_PASSWORD, Rig
from transports.vsphere.model import Secret


def test_repository_add_refuses(rig: Rig) -> None:
    def add(**values: Any) -> dict[str, Any]:
        given = {"name": "r2", "location": "/backup/r2", "password": Secret("long enough"), **values}
        return repositories.add(rig.ctx, **given)

    for values, field in (
        ({"location": "relative"}, "location"),
        ({"location": LOCATION}, "location"),
        ({"password": Secret("short")}, "password"),
        ({"block_size_bytes": 1_000_000}, "block_size_bytes"),
        ({"max_tasks": -1}, "max_tasks"),
        ({"import_existing": True}, "location"),
        ({"import_existing": True, "location": LOCATION, "password": Secret("wrong")}, "location"),
    ):
        with pytest.raises(InvalidError) as caught:
            add(**values)
        assert field in caught.value.details, values
    with pytest.raises(ConflictError):
        add(name="r1")
    with pytest.raises(ConflictError, match="registered already"):
        add(import_existing=True, location=LOCATION, password=Secret(REPOSITORY_PASSWORD))
    assert [row["name"] for row in repositories.list_all(rig.ctx)] == ["r1"]


def test_repository_edit_and_remove(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    assert repositories.edit(rig.ctx, "r1", {"max_tasks": 3, "name": "main"})["max_tasks"] == 3
    with pytest.raises(InvalidError):
        repositories.edit(rig.ctx, "main", {"location": "/elsewhere"})
    with pytest.raises(ConflictError, match="job1"):
        repositories.remove(rig.ctx, "main")
    rig.run()
    jobs.remove(rig.ctx, "job1")
    repositories.remove(rig.ctx, "main")
    assert len(rig.repository.points) == 1  # data is not touched
    assert rig.points() == []


def test_another_repository_at_the_place_is_refused(rig: Rig) -> None:
    [row] = repositories.list_all(rig.ctx)
    rig.ctx.agents.forget(row["id"])
    rig.repository.repository_id = "another"
    with pytest.raises(ConflictError, match="not"):
        repositories.refresh_space(rig.ctx, row["id"])


def test_agent_that_died_is_started_again(rig: Rig) -> None:
    [row] = repositories.list_all(rig.ctx)
    started = rig.repositories.started
    rig.repositories.fail("space", "dead", "")
    with pytest.raises(UnavailableError):
        repositories.refresh_space(rig.ctx, row["id"])
    repositories.refresh_space(rig.ctx, row["id"])
    assert rig.repositories.started == started + 1


@pytest.mark.parametrize("name", ["a/b", ".", ".."])
def test_names_fit_into_a_path_of_the_api(rig: Rig, name: str) -> None:
    with pytest.raises(InvalidError, match="slash"):
        repositories.edit(rig.ctx, "r1", {"name": name})


def test_a_repository_may_not_lie_among_the_servers_own_files(rig: Rig) -> None:
    for location in (rig.settings.data_dir, rig.settings.data_dir / "repository"):
        with pytest.raises(InvalidError, match="data directory"):
            repositories.add(
                rig.ctx, name="inside", location=str(location), password=Secret(REPOSITORY_PASSWORD)
            )
