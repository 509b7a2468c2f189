"""Extents of a scale-out repository: the services over the real repository agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from backup_server.errors import UnavailableError
from backup_server.services import extents, repositories
from pipeline.storage.scale_out import MARKER
from tests.fakes.server import Rig


@pytest.fixture
def rig(real_agent_rig: Rig) -> Rig:
    return real_agent_rig


def two_extents(rig: Rig, tmp_path: Path) -> Path:
    """The second of them, evacuated."""
    place = tmp_path / "second"
    extents.add(rig.ctx, "r1", name="second", location=str(place))
    assert rig.drive(extents.evacuate(rig.ctx, "r1", "second")["id"])["result"] == "success"
    return place


def names(rig: Rig) -> list[str]:
    return [one["name"] for one in extents.list_all(rig.ctx, "r1")["extents"]]


def test_an_extent_that_was_removed_bears_no_mark_any_more(rig: Rig, tmp_path: Path) -> None:
    place = two_extents(rig, tmp_path)
    assert (place / MARKER).exists()
    extents.remove(rig.ctx, "r1", "second")
    assert names(rig) == ["first"]
    assert [path for path in place.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("step", ["_store", "_retire"])
def test_a_crash_while_an_extent_is_removed_leaves_a_repository_that_opens(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Died(BaseException):
        pass

    def die(*_: object) -> None:
        raise Died

    two_extents(rig, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(extents, step, die)
        with pytest.raises(Died):
            extents.remove(rig.ctx, "r1", "second")
    rig.ctx.agents.close()
    assert rig.drive(repositories.check(rig.ctx, "r1")["id"])["result"] == "success"
    if step == "_store":
        extents.remove(rig.ctx, "r1", "second")
    assert names(rig) == ["first"]


def test_an_extent_that_goes_away_in_that_moment_is_removed_all_the_same(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_extents(rig, tmp_path)
    real = extents._call

    def away(ctx: object, repository_id: str, call: str, **args: object) -> object:
        if call == "extent_retire":
            raise UnavailableError("the share is away")
        return real(ctx, repository_id, call, **args)  # type: ignore[arg-type]

    monkeypatch.setattr(extents, "_call", away)
    extents.remove(rig.ctx, "r1", "second")
    assert names(rig) == ["first"]
