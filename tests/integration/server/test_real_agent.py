"""The services over the real repository agent and a repository on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from backup_server.db.tables import Task
from backup_server.errors import InvalidError
from backup_server.services import jobs, repositories, restore_points
from backup_server.services.agent_link import AgentProcess
from tests.fakes.server import REPOSITORY_PASSWORD, Rig
from transports.vsphere.model import Secret

ZEROS = "0" * 64


@pytest.fixture
def rig(real_agent_rig: Rig) -> Rig:
    return real_agent_rig


def back_up(rig: Rig) -> dict[str, object]:
    """A session whose disks are all zeros: the only maps that need no data mover."""
    session = jobs.run(rig.ctx, "job1")
    for _ in range(3):
        rig.engine.run_once()
    rig.proxies.work()
    with rig.ctx.db() as s:
        s.execute(sa.update(Task).values(map_root=ZEROS))
    return rig.drive(session["id"])


def test_points_are_kept_checked_forgotten_and_found_again(rig: Rig, tmp_path: Path) -> None:
    rig.vcenter.add_vm("db01")
    rig.job(retention={"keep": 2})
    for _ in range(3):
        session = back_up(rig)
        assert session["result"] == "success", session["reason"]
        rig.clock.advance(3600)
    assert len(rig.points()) == 2
    shown = rig.drive(repositories.check(rig.ctx, "r1", read_data=True)["id"])
    assert (shown["result"], shown["report"]["points"]) == ("success", 2)
    shown = rig.drive(repositories.rescan(rig.ctx, "r1")["id"])
    assert shown["report"] == {"points": 2, "added": 0, "removed": 0}
    [repository] = repositories.list_all(rig.ctx)
    assert 0 < repository["free_bytes"] <= repository["total_bytes"]
    restore_points.remove(rig.ctx, "db01@latest")
    assert len(rig.ctx.agents.get(repository["id"]).points()) == 1

    before = rig.points()[0]
    jobs.remove(rig.ctx, "job1")
    repositories.remove(rig.ctx, "r1")
    again = {"name": "again", "location": str(tmp_path / "repository"), "import_existing": True}
    with pytest.raises(InvalidError):
        repositories.add(rig.ctx, **again, password=Secret("wrong password"))
    repositories.add(rig.ctx, **again, password=Secret(REPOSITORY_PASSWORD))
    [after] = rig.points()
    assert (after.id, after.created_at, after.instance_uuid) == (
        before.id, before.created_at, before.instance_uuid,
    )  # fmt: skip
    assert [disk["change_id"] for disk in after.disks] == [disk["change_id"] for disk in before.disks]


def test_place_of_a_repository_is_not_made_another(rig: Rig, tmp_path: Path) -> None:
    location = str(tmp_path / "repository")
    for refused in (location, str(tmp_path / "no" / "such" / "parent")):
        with pytest.raises(InvalidError):
            repositories.add(rig.ctx, name="r2", location=refused, password=Secret("long enough"))
    assert [row["name"] for row in repositories.list_all(rig.ctx)] == ["r1"]
    [row] = repositories.list_all(rig.ctx)
    assert rig.ctx.agents.get(row["id"]).points() == []


def test_killed_agent_is_started_again(rig: Rig) -> None:
    import os
    import signal

    [repository] = repositories.list_all(rig.ctx)
    agent = rig.ctx.agents.get(repository["id"])
    first = agent.opened()
    link = agent._link
    assert isinstance(link, AgentProcess)
    os.kill(link.pid, signal.SIGKILL)
    link._process.wait()
    assert agent.opened() == first
    assert agent._link is not link
