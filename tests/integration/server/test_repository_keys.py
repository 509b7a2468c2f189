"""Keys of repositories: the services over the real repository agent and a repository on the disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa

from backup_server.db.states import SessionKind, SessionState
from backup_server.db.tables import Credential, Repository, Session
from backup_server.errors import (
    ConflictError,
    IntegrityError,
    InvalidError,
    NotFoundError,
    WrongKeyError,
)
from backup_server.services import repositories, repository_keys
from backup_server.services.agent_link import AgentProcess
from tests.fakes.server import REPOSITORY_PASSWORD, Rig
from transports.vsphere.model import Secret


@pytest.fixture
def rig(real_agent_rig: Rig) -> Rig:
    return real_agent_rig


def key_material(rig: Rig) -> str:
    with rig.ctx.db.read() as s:
        row = s.scalars(sa.select(Repository)).one()
    return rig.ctx.agents.get(row.id).opened().master_key.reveal()


def everything_written(tmp_path: Path) -> str:
    """Database, logs and all that is no block data, as text."""
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    return "\n".join(path.read_bytes().decode("latin-1") for path in files)


def test_keys_from_the_first_to_a_rotation(
    rig: Rig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ctx = rig.ctx
    [first] = repository_keys.list_all(ctx, "r1")
    assert (first["kind"], first["own"], first["problem"]) == ("password", True, "")
    recovery = repository_keys.add(ctx, "r1", kind="recovery", label="in the safe")
    key_file = repository_keys.add(ctx, "r1", kind="key-file")
    assert len(recovery["secret"].split("-")) == 13
    assert key_file["secret"].splitlines()[-1].startswith("vmhaul-key-1 ")

    changed = repository_keys.change(ctx, "r1", new_password=Secret("another horse"))
    assert changed["own"]
    listed = {key["id"]: key for key in repository_keys.list_all(ctx, "r1")}
    assert first["id"] not in listed, "the old password opens nothing"
    assert listed[recovery["id"]]["label"] == "in the safe"
    with pytest.raises(ConflictError, match="server itself opens"):
        repository_keys.revoke(ctx, "r1", changed["id"])
    with pytest.raises(NotFoundError, match="key list r1"):
        repository_keys.revoke(ctx, "r1", "ffffffff")

    before = key_material(rig)
    repository_keys.revoke(ctx, "r1", key_file["id"][:8])
    assert repository_keys.rotate(ctx, "r1") == {"key_epoch": 2}
    after = key_material(rig)
    assert (before, after.partition(",")[0]) == (after.partition(",")[0], before), "ids stay"
    assert after.partition(",")[2].startswith("2="), "new tasks get the new key"
    with ctx.db.read() as s:
        assert s.scalars(sa.select(Repository)).one().settings["key_epoch"] == 2

    rig.restart()
    rig.ctx.agents.start = lambda: AgentProcess(tmp_path / "agent.log")  # type: ignore[method-assign]
    assert key_material(rig) == after
    logged = capfd.readouterr()
    written = everything_written(tmp_path) + logged.out + logged.err
    for secret in (
        recovery["secret"],
        key_file["secret"].split()[-2],
        "another horse",
        REPOSITORY_PASSWORD,
        after.partition("=")[2],
        before,
    ):
        assert secret not in written


def test_a_server_that_was_locked_out_says_so_and_is_let_in_again(rig: Rig, tmp_path: Path) -> None:
    ctx = rig.ctx
    recovery = repository_keys.add(ctx, "r1", kind="recovery")
    other = AgentProcess(tmp_path / "other.log")
    location = str(tmp_path / "repository")
    other.call("open", {"location": location, "password": recovery["secret"]}, timeout_s=60)
    other.call("change_key", {"old": REPOSITORY_PASSWORD, "new": "somebody else's"}, timeout_s=60)
    other.close()
    rig.restart()
    rig.ctx.agents.start = lambda: AgentProcess(tmp_path / "agent.log")  # type: ignore[method-assign]
    with pytest.raises(WrongKeyError, match="vmhaul repository key use r1"):
        repository_keys.list_all(rig.ctx, "r1")
    with pytest.raises(InvalidError, match="wrong password"):
        repository_keys.use(rig.ctx, "r1", Secret("not this one"))
    own = repository_keys.use(rig.ctx, "r1", Secret("somebody else's"))
    assert (own["kind"], own["own"]) == ("password", True)
    own = repository_keys.use(rig.ctx, "r1", Secret(recovery["secret"].lower()))
    assert own["id"] == recovery["id"]


def test_a_crash_between_the_steps_of_a_change_leaves_a_password_that_opens(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        pass

    def die(*_: object) -> None:
        raise Died

    for step in ("_store", "revoke_key"):
        with monkeypatch.context() as patch:
            if step == "_store":
                patch.setattr(repository_keys, step, die)
            else:
                patch.setattr("backup_server.services.repository_agent.RepositoryAgent.revoke_key", die)
            with pytest.raises(Died):
                repository_keys.change(rig.ctx, "r1", new_password=Secret(f"new after {step}"))
        rig.restart()
        rig.ctx.agents.start = lambda: AgentProcess(tmp_path / "agent.log")  # type: ignore[method-assign]
        own = [key for key in repository_keys.list_all(rig.ctx, "r1") if key["own"]]
        assert len(own) == 1


def test_the_data_key_is_not_changed_under_a_check(rig: Rig) -> None:
    session = repositories.check(rig.ctx, "r1")
    with pytest.raises(ConflictError, match="reads all of repository 'r1'"):
        repository_keys.rotate(rig.ctx, "r1")
    rig.drive(session["id"])
    with rig.ctx.db.read() as s:
        states = {row.state for row in s.scalars(sa.select(Session)) if row.kind == SessionKind.CHECK}
    assert states == {SessionState.FINISHED}
    assert repository_keys.rotate(rig.ctx, "r1") == {"key_epoch": 2}


def test_an_old_state_of_the_repository_is_refused(rig: Rig, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(repository, tmp_path / "old")
    repository_keys.rotate(rig.ctx, "r1")
    shutil.rmtree(repository)
    shutil.copytree(tmp_path / "old", repository)
    with pytest.raises(IntegrityError, match="somebody put an old state of it back"):
        repository_keys.list_all(rig.ctx, "r1")


def test_bad_passwords_and_kinds_are_refused(rig: Rig) -> None:
    with pytest.raises(InvalidError, match="at least 8"):
        repository_keys.add(rig.ctx, "r1", kind="password", password=Secret("short"))
    with pytest.raises(InvalidError, match="at least 8"):
        repository_keys.change(rig.ctx, "r1", new_password=Secret(""))
    with pytest.raises(InvalidError, match="no kind of key"):
        repository_keys.add(rig.ctx, "r1", kind="wish")
    with pytest.raises(ConflictError, match="must not be empty, a recovery key"):
        repository_keys.add(
            rig.ctx, "r1", kind="password", password=Secret("vmhaul-key-1 looks like a file")
        )
    with pytest.raises(NotFoundError, match="there is no repository"):
        repository_keys.list_all(rig.ctx, "r9")


def test_a_repository_of_the_release_before_is_taken_over_and_upgraded(
    rig: Rig, tmp_path: Path
) -> None:
    import tarfile

    golden = Path(__file__).parents[2] / "format" / "golden" / "repository-v1.tar.gz"
    place = tmp_path / "golden"
    with tarfile.open(golden) as tar:
        tar.extractall(place, filter="data")
    password = json.loads(golden.with_name("repository-v1.json").read_text())["password"]
    repositories.add(
        rig.ctx, name="old", location=str(place), password=Secret(password), import_existing=True
    )
    with pytest.raises(ConflictError, match="vmhaul repository upgrade"):
        repository_keys.rotate(rig.ctx, "old")
    assert repository_keys.upgrade(rig.ctx, "old")["added"] == ["key-epochs", "patches"]
    assert repository_keys.upgrade(rig.ctx, "old")["added"] == []
    [own] = repository_keys.list_all(rig.ctx, "old")
    assert (own["version"], own["own"]) == (2, True)
    assert repository_keys.rotate(rig.ctx, "old") == {"key_epoch": 2}
    shown = rig.drive(repositories.check(rig.ctx, "old", read_data=True)["id"])
    assert (shown["result"], shown["report"]["points"]) == ("success", 2)
    with rig.ctx.db.read() as s:
        assert len(s.scalars(sa.select(Credential)).all()) >= 2


def test_the_servers_own_key_is_not_changed_under_it_however_it_is_typed(rig: Rig) -> None:
    recovery = repository_keys.add(rig.ctx, "r1", kind="recovery")
    repository_keys.use(rig.ctx, "r1", Secret(recovery["secret"]))
    with pytest.raises(ConflictError, match="server itself opens"):
        repository_keys.change(
            rig.ctx,
            "r1",
            old_password=Secret(f" {recovery['secret'].lower()}\n"),
            new_password=Secret("another horse"),
        )
    rig.ctx.agents.close()
    assert [key["own"] for key in repository_keys.list_all(rig.ctx, "r1")].count(True) == 1
