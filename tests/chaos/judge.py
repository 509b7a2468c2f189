"""What must hold at the end of a round, whatever happened in it. Each finding is a sentence."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import redis
import sqlalchemy as sa
from vmhaul_lab import verify

from backup_server.services.marks import PREFIX
from pipeline.map_reader import MapDiskReader
from pipeline.model import RestorePoint
from pipeline.repository.repository import Repository
from pipeline.storage import open_storage
from tests.chaos.oracle import Frozen
from tests.chaos.stand import PASSWORD, Stand
from tests.chaos.workload import Restore

USER_SNAPSHOT: Final = "before the upgrade"
_ZERO_ROOT: Final = "0" * 64


class Database:
    """The job database, looked into from outside of the product."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url, poolclass=sa.NullPool)

    def rows(self, query: str) -> list[Any]:
        with self._engine.connect() as connection:
            return list(connection.execute(sa.text(query)))

    def watch_ends(self) -> None:
        """From now on the database itself writes down every end of a task, and every restore point there was."""
        columns = "task_id TEXT, attempt INTEGER, result TEXT, note TEXT"
        with self._engine.begin() as connection:
            connection.execute(sa.text(f"CREATE TABLE chaos_ends ({columns})"))
            connection.execute(sa.text("CREATE TABLE chaos_points (id TEXT)"))
            statements = _PG_TRIGGER if self._engine.dialect.name == "postgresql" else _SQLITE_TRIGGER
            for statement in statements:
                connection.exec_driver_sql(statement)


_PG_TRIGGER: Final = (
    """CREATE FUNCTION chaos_note() RETURNS trigger AS $$ BEGIN
    IF NEW.state = 'done' AND OLD.state <> 'done' THEN
      INSERT INTO chaos_ends VALUES (NEW.id, NEW.attempt, NEW.result, 'ended');
    ELSIF OLD.state = 'done' AND (NEW.state <> 'done' OR NEW.result IS DISTINCT FROM OLD.result
        OR NEW.map_root IS DISTINCT FROM OLD.map_root OR NEW.attempt <> OLD.attempt) THEN
      INSERT INTO chaos_ends VALUES (NEW.id, NEW.attempt, NEW.result, 'changed after its end');
    END IF; RETURN NEW; END $$ LANGUAGE plpgsql""",
    "CREATE TRIGGER chaos_ends AFTER UPDATE ON tasks FOR EACH ROW EXECUTE FUNCTION chaos_note()",
    """CREATE FUNCTION chaos_point() RETURNS trigger AS $$ BEGIN
    INSERT INTO chaos_points VALUES (NEW.id); RETURN NEW; END $$ LANGUAGE plpgsql""",
    """CREATE TRIGGER chaos_points AFTER INSERT ON restore_points FOR EACH ROW
    EXECUTE FUNCTION chaos_point()""",
)
_SQLITE_TRIGGER: Final = (
    """CREATE TRIGGER chaos_point AFTER INSERT ON restore_points BEGIN
    INSERT INTO chaos_points VALUES (NEW.id); END""",
    """CREATE TRIGGER chaos_ended AFTER UPDATE ON tasks WHEN NEW.state = 'done' AND OLD.state <> 'done' BEGIN
    INSERT INTO chaos_ends VALUES (NEW.id, NEW.attempt, NEW.result, 'ended'); END""",
    """CREATE TRIGGER chaos_changed AFTER UPDATE ON tasks WHEN OLD.state = 'done' AND (NEW.state <> 'done'
    OR NEW.result IS NOT OLD.result OR NEW.map_root IS NOT OLD.map_root OR NEW.attempt <> OLD.attempt) BEGIN
    INSERT INTO chaos_ends VALUES (NEW.id, NEW.attempt, NEW.result, 'changed after its end'); END""",
)


class Judge:
    """Looks at a stand that has come to rest."""

    def __init__(self, stand: Stand, database: Database, frozen: Frozen) -> None:
        self._stand = stand
        self._database = database
        self._frozen = frozen
        self.points = 0
        """Restore points whose disks were compared."""
        self._digests: dict[str, dict[int, str]] = {}

    # -- coming to rest

    def unfinished(self) -> list[str]:
        """Sessions that are still open."""
        rows = self._database.rows("SELECT id, kind, state FROM sessions WHERE state <> 'finished'")
        return [f"{row.kind} session {row.id} is {row.state}" for row in rows]

    def leftovers(self) -> list[str]:
        """What vSphere still holds of us, and intents that say so."""
        site = self._stand.site
        found = [
            f"VM {vm.name} has snapshot {snapshot.name!r}"
            for vm in site.control.vms()
            for snapshot in vm.snapshots
            if snapshot.name.startswith(PREFIX)
        ]
        found += [
            f"VM {vm.name} needs consolidation" for vm in site.control.vms() if vm.consolidation_needed
        ]
        rows = self._database.rows(
            "SELECT id, kind, vm_name, problem FROM intents WHERE state <> 'done'"
        )
        found += [
            f"intent {row.id} ({row.kind} of {row.vm_name}) is open: {row.problem}" for row in rows
        ]
        return [*found, *self._stand.attached(), *self._stand.storage.leftovers()]

    def counters(self) -> list[str]:
        """What the claim index still counts."""
        with redis.Redis.from_url(self._stand.redis_url, decode_responses=True) as client:
            return list(_counted(client))

    # -- at rest

    def verdict(self, restores: list[Restore]) -> list[str]:
        """Everything else, in one list. Takes seconds."""
        return [*self._tasks(), *self._counters(), *self._users_own(), *self._points("main"), *self._points("second"),
                *self._stand.storage.at_rest(), *self._restored(restores)]  # fmt: skip

    def _tasks(self) -> Iterator[str]:
        for row in self._database.rows(
            "SELECT task_id, count(*) AS times FROM chaos_ends GROUP BY task_id HAVING count(*) > 1"
        ):
            ends = self._database.rows(f"SELECT * FROM chaos_ends WHERE task_id = '{row.task_id}'")
            yield f"task {row.task_id} ended {row.times} times: {[tuple(end) for end in ends]}"
        for row in self._database.rows("SELECT id, state FROM tasks WHERE state <> 'done'"):
            yield f"task {row.id} is {row.state}, and no session is open"
        for row in self._database.rows("SELECT id, state FROM session_vms WHERE state <> 'done'"):
            yield f"VM {row.id} of a session is {row.state}, and no session is open"
        # What counts as success must have given a restore point, whether it is still kept or not.
        for row in self._database.rows(
            "SELECT v.id, v.name, v.restore_point_id FROM session_vms v JOIN sessions s ON s.id = v.session_id "
            "LEFT JOIN chaos_points p ON p.id = v.restore_point_id "
            "WHERE s.kind = 'backup' AND v.result IN ('success', 'warning') AND p.id IS NULL"
        ):
            yield f"VM {row.name} succeeded, but its restore point {row.restore_point_id} never was there"

    def _counters(self) -> Iterator[str]:
        """What the server has counted is what the rows say."""
        (found,) = self._database.rows("SELECT value FROM settings WHERE name = 'counters'")
        counted = {
            tuple(json.loads(text)): int(count) for text, count in json.loads(found.value).items()
        }
        for name, table, state in (
            ("tasks_ended", "tasks", "done"),
            ("sessions_ended", "sessions", "finished"),
        ):
            rows = self._database.rows(
                f"SELECT kind, result, count(*) AS times FROM {table} WHERE state = '{state}' GROUP BY kind, result"
            )
            said = {key: count for key, count in counted.items() if key[0] == name}
            there = {(name, row.kind, row.result): row.times for row in rows}
            for key in sorted(said.keys() | there.keys()):
                if said.get(key, 0) != there.get(key, 0):
                    yield f"counter {key} says {said.get(key, 0)}, and there are {there.get(key, 0)}"

    def _users_own(self) -> Iterator[str]:
        if not self._stand.plan.user_snapshot:
            return
        names = [s.name for vm in self._stand.site.control.vms() for s in vm.snapshots]
        if names.count(USER_SNAPSHOT) != 1:
            yield f"the user's snapshot is not there once: {names}"

    def checks(self, sessions: list[str]) -> Iterator[str]:
        """Checks that ran while everything else went on must have found nothing, or have said why they could not."""
        for session in sessions:
            for row in self._database.rows(
                f"SELECT result, reason, report FROM sessions WHERE id = '{session}'"
            ):
                if "problems" in str(row.report) and row.result != "success":
                    yield f"check {session} found: {row.reason}"

    def _points(self, name: str) -> Iterator[str]:
        location, secrets = self._stand.repository(name)
        storage = open_storage(location, secrets=secrets)
        try:
            yield from self._stored(
                name, Repository.open_with_password(storage, PASSWORD, clock=time.time)
            )
        finally:
            storage.close()

    def _stored(self, name: str, repository: Repository) -> Iterator[str]:
        listed = {row.id for row in self._database.rows(
            "SELECT p.id FROM restore_points p JOIN repositories r ON r.id = p.repository_id "
            f"WHERE r.name = '{name}' AND NOT p.deleting")}  # fmt: skip
        stored = {str(point.id): point for point in repository.points()}
        for missing in sorted(listed - stored.keys()):
            yield f"restore point {missing} of the catalogue is not in repository {name}"
        for extra in sorted(stored.keys() - listed):
            yield f"restore point {extra} in repository {name} is not in the catalogue"
        for damaged in repository.damaged_points():
            yield f"restore point {damaged} in repository {name} is damaged"
        for point in stored.values():
            yield from self._point(repository, point)

    def _point(self, repository: Repository, point: RestorePoint) -> Iterator[str]:
        self.points += 1
        digests = self._digests.setdefault(str(point.id), {})
        for disk in point.disks:
            got = _digest(repository, str(disk.map_root), disk.capacity_bytes)
            digests[disk.disk_key] = got
            known = (point.vm.name, disk.disk_key, disk.change_id)
            wanted = {self._frozen.by_change_id[known]} if known in self._frozen.by_change_id else set()
            if not disk.change_id:
                wanted = self._frozen.of_disk.get((point.vm.name, disk.disk_key), set())
            where = f"{point.vm.name} disk {disk.disk_key} in point {point.id} ({point.kind}, {point.job_name})"
            if not wanted:
                yield f"nobody saw the snapshot of {where}, change id {disk.change_id!r}"
            elif got not in wanted:
                yield f"{where} is not what was frozen: {got}, wanted {sorted(wanted)}"
            if disk.sha256 and disk.sha256 != got:
                yield f"{where} says SHA-256 {disk.sha256} of itself and is {got}"

    def _restored(self, restores: list[Restore]) -> Iterator[str]:
        site = self._stand.site
        there = {vm.name for vm in site.control.vms()}
        for restore in restores:
            rows = self._database.rows(f"SELECT result FROM sessions WHERE id = '{restore.session}'")
            result = rows[0].result if rows else "gone"
            if result not in ("success", "warning"):
                if restore.name in there:
                    yield f"VM {restore.name} is there although its restore ended with {result}"
                continue
            if restore.name not in there:
                yield f"VM {restore.name} is not there although its restore ended with {result}"
                continue
            disks = sorted(site.disks(restore.name), key=lambda disk: disk.key)
            got = {disk.key: verify.sha256(disk.live_file) for disk in disks}
            wanted = self._digests.get(restore.point)
            if wanted is None:
                # The point is gone since; it was made of something that a snapshot has frozen.
                same = all(
                    got[key] in self._frozen.of_disk.get((restore.vm, key), set()) for key in got
                )
            else:
                same = got == wanted
            if not same:
                yield f"VM {restore.name} is not equal to restore point {restore.point}"


def _digest(repository: Repository, map_root: str, capacity_bytes: int) -> str:
    whole = hashlib.sha256()
    if map_root == _ZERO_ROOT:
        whole.update(bytes(capacity_bytes))
        return whole.hexdigest()
    reader = MapDiskReader(repository, map_root, capacity_bytes, workers=1)
    try:
        step = 1 << 20
        for at in range(0, capacity_bytes, step):
            buffer = bytearray(min(step, capacity_bytes - at))
            reader.read_into(at, memoryview(buffer))
            whole.update(buffer)
    finally:
        reader.close()
    return whole.hexdigest()


def _counted(client: redis.Redis) -> Iterator[str]:
    use: Any = client.hgetall("vmhaul:use")
    yield from (f"limit {name} counts {count}" for name, count in use.items() if count != "0")
    held: Any = client.zrange("vmhaul:lease", 0, -1)
    if held:
        yield f"claims are held: {held}"
    for family in ("t", "pend", "heads", "vm", "li"):
        if waiting := list(client.scan_iter(f"vmhaul:{family}:*")):
            yield f"the claim index still has {waiting}"


def log_findings(logs: list[Path]) -> list[str]:
    """Exceptions in logs that nothing translated, by their last line: not wrong by themselves, worth a look."""
    counts: dict[str, int] = {}
    for log in logs:
        inside = False
        for line in log.read_text(errors="replace").splitlines():
            text = line.strip()
            if text.startswith("Traceback (most recent call last)"):
                inside = True
            elif inside and line and not line.startswith((" ", "|", "╭", "│", "╰")):
                inside = False
                word = f"{log.name}: {text[:160]}"
                counts[word] = counts.get(word, 0) + 1
    return [f"{count}x {word}" for word, count in sorted(counts.items(), key=lambda item: -item[1])]
