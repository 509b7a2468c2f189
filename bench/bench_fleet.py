"""A night of a large site at compressed time: real Redis, PostgreSQL, server loops and Celery workers; only the data
movers are played by sleeps. Checks the record afterwards.

    python -m bench.bench_fleet [--vms 10000 --disks 30000 --proxies 200 --slots 8 --compress 16] [--minutes M]
                                [--json FILE]

`--minutes`: look at the night after so long, whatever is left; then what did not end is no problem.

Prints a table; writes bench/fleet.json. Ends with 1 when a limit was exceeded or a task did not end exactly once.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import psutil
import sqlalchemy as sa
from nacl.signing import SigningKey

from backup_server import broker as embedded
from backup_server.config import Settings
from backup_server.credentials import load_or_create_key
from backup_server.db.engine import Database, open_database
from backup_server.db.states import Result, TaskState
from backup_server.db.tables import Proxy, Task
from backup_server.scheduler import facts
from backup_server.scheduler.claims import ClaimIndex, RunningClaim
from backup_server.scheduler.view import View
from backup_server.services import proxy_facts
from backup_server.services.limits import task_keys
from backup_server.services.surveys import HOTADD_RANKS, NETWORK_RANK
from bench import fleet_check, fleet_site
from bench.database import USER, programs
from bench.fleet_check import Fleet, Run
from bench.fleet_server import LightContext
from bench.fleet_site import Size
from transports.base import TransportMode

START_S: Final = 120.0
PROGRESS_S: Final = 30.0
HERE: Final = Path(__file__).parent
_FIRST: Final = ("nice", "-n", "-10") if os.geteuid() == 0 else ()
"""Before the commands of server, broker and database: in life they have a machine of their own, and do not wait for two
hundred others that play proxies on the same processors.
"""
MODES_ROUND: Final = {mode.value: mode for mode in TransportMode}


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = START_S) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            raise SystemExit(f"{what} did not happen within {timeout_s:.0f} s")
        time.sleep(0.1)


# ---- processes ------------------------------------------------------------------------------------


@contextmanager
def postgres(place: Path) -> Iterator[tuple[str, int]]:
    """URL and process id of a server of its own, as it is set up out of the box."""
    found = programs()
    if found is None:
        raise SystemExit("PostgreSQL's programs are missing; tools/setup.sh test installs them")
    directory = place / "pg"
    directory.mkdir()
    prefix = []
    if os.geteuid() == 0:
        account = pwd.getpwnam(USER)
        os.chown(directory, account.pw_uid, account.pw_gid)
        prefix = [*_FIRST, "runuser", "-u", USER, "--"]
    data = directory / "data"
    subprocess.run(
        [
            *prefix,
            str(found / "initdb"),
            "-D",
            str(data),
            "-U",
            USER,
            "-A",
            "trust",
            "-N",
            "-E",
            "UTF8",
        ],
        check=True,
        capture_output=True,
    )
    options = f"-k {directory} -c listen_addresses="
    control = [*prefix, str(found / "pg_ctl"), "-D", str(data), "-w", "-l", str(directory / "log")]
    subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True)
    try:
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
        yield f"postgresql+psycopg://{USER}@/postgres?host={directory}", pid
    finally:
        subprocess.run([*control, "-m", "fast", "stop"], check=False, capture_output=True)


@contextmanager
def child(
    command: list[str], log: Path, *, stop_s: float = 60.0, before: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """`before`: words before the command."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*before, *command], stdout=out, stderr=out, stdin=subprocess.DEVNULL
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(stop_s)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def cpu_of(pid: int) -> float:
    """Seconds of a process and those below it."""
    try:
        top = psutil.Process(pid)
        every = [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    total = 0.0
    for one in every:
        try:
            used = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += used.user + used.system
        if one is top:
            total += used.children_user + used.children_system
    return total


# ---- one run --------------------------------------------------------------------------------------


def run(
    size: Size,
    *,
    database_url: str | None = None,
    timeout_s: float = 7200.0,
    look_after_s: float | None = None,
) -> dict[str, Any]:
    """`database_url`: an empty database to use instead of a PostgreSQL server of its own. `look_after_s`: end then,
    whatever is left; None: when all is done.
    """
    # short: paths of Unix sockets are bounded
    place = Path(tempfile.mkdtemp(prefix="vmhaul-f"))
    place.chmod(0o711)
    try:
        with ExitStack() as stack:
            return _run(size, place, database_url, timeout_s, look_after_s, stack)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _run(
    size: Size,
    place: Path,
    database_url: str | None,
    timeout_s: float,
    look_after_s: float | None,
    stack: ExitStack,
) -> dict[str, Any]:
    pids: dict[str, int] = {}
    if database_url is None:
        database_url, pids["postgresql"] = stack.enter_context(postgres(place))
    how = embedded.prepare(place / "b", place / "r")
    pids["redis"] = stack.enter_context(
        child(list(how.command), place / "redis.log", before=_FIRST)
    ).pid
    wait_for(how.answers, "the broker's start")
    given = {
        "database": database_url,
        "broker": how.celery_url,
        "settings": fleet_site.server_settings(size),
    }
    (place / "server.json").write_text(json.dumps(given))
    settings = Settings(data_dir=place / "s", database=database_url, **given["settings"])
    settings.make_directories()
    db = open_database(database_url)
    stack.callback(db.close)
    server = stack.enter_context(
        child(
            [sys.executable, "-m", "bench.fleet_server", str(place)],
            place / "server.log",
            before=_FIRST,
        )
    )
    pids["server"] = server.pid
    try:
        wait_for((place / "door.json").exists, "the server's start")
        key = SigningKey(load_or_create_key(settings.signing_key_file))
        fleet_site.make_site(
            db,
            size,
            place,
            server_url=json.loads((place / "door.json").read_text())["url"],
            server_key=bytes(key.verify_key).hex(),
            broker_url=how.celery_url,
            now=datetime.now(UTC),
        )
        workers = stack.enter_context(
            child([sys.executable, "-m", "bench.fleet_workers", str(place)], place / "workers.log")
        )
        pids["workers"] = workers.pid
        wait_for(lambda: _online(db, settings) == size.proxies, "the first heartbeat of all proxies")
        return _night(db, size, settings, place, pids, server, timeout_s, look_after_s)
    except BaseException:
        for name in ("server.log", "workers.log"):
            path = place / name
            if path.exists():
                sys.stderr.write(f"--- {name}\n{path.read_text(errors='replace')[-3000:]}\n")
        raise


def _online(db: Database, settings: Settings) -> int:
    since = datetime.now(UTC) - timedelta(seconds=settings.proxy_offline_after_s)
    with db.read() as s:
        return s.scalar(sa.select(sa.func.count(Proxy.id)).where(Proxy.last_seen_at > since)) or 0


def _left(db: Database) -> int:
    with db.read() as s:
        return (
            s.scalar(sa.select(sa.func.count(Task.id)).where(Task.state != TaskState.DONE.value)) or 0
        )


def _night(
    db: Database,
    size: Size,
    settings: Settings,
    place: Path,
    pids: dict[str, int],
    server: subprocess.Popen[bytes],
    timeout_s: float,
    look_after_s: float | None,
) -> dict[str, Any]:
    idle = {name: cpu_of(pid) for name, pid in pids.items()}
    began = time.monotonic()
    for rows in fleet_site.night(db, size, datetime.now(UTC)):
        now = datetime.now(UTC)
        fleet_site.insert(
            db,
            fleet_site.Rows(
                session=rows.session,
                vms=rows.vms,
                tasks=[{**task, "created_at": now} for task in rows.tasks],
            ),
        )
    inserted_s = time.monotonic() - began
    until = began + timeout_s
    told = began
    while left := _left(db):
        if time.monotonic() > told + PROGRESS_S:
            told = time.monotonic()
            sys.stderr.write(f"{told - began:6.0f} s: {left} tasks are left\n")
        if time.monotonic() > until:
            raise SystemExit(f"{left} tasks are left after {timeout_s:.0f} s")
        if look_after_s is not None and time.monotonic() > began + look_after_s:
            break
        if server.poll() is not None:
            raise SystemExit("the server ended")
        time.sleep(1.0 if size.disks > 1000 else 0.2)
    wall_s = time.monotonic() - began
    cpu = {name: round(cpu_of(pid) - idle[name], 1) for name, pid in pids.items()}
    looked_at, left = time.time(), _left(db)
    view = View()
    ctx = LightContext(settings=settings, db=db)
    view.read(ctx, datetime.now(UTC))
    server.send_signal(signal.SIGTERM)
    server.wait(60)
    statistics = json.loads((place / "statistics.json").read_text())
    return _report(db, size, place, view, left, looked_at, wall_s, inserted_s, cpu, statistics)


# ---- the record -----------------------------------------------------------------------------------


def _report(
    db: Database,
    size: Size,
    place: Path,
    view: View,
    left: int,
    looked_at: float,
    wall_s: float,
    inserted_s: float,
    cpu: dict[str, float],
    statistics: dict[str, Any],
) -> dict[str, Any]:
    lines = [
        json.loads(line)
        for path in sorted((place / "records").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    night = _read(db, view, lines, looked_at=looked_at)
    runs, problems = night.runs, night.problems
    fleet = _fleet(view)
    problems += [f"limit exceeded: {one}" for one in fleet_check.broken_limits(runs, fleet.limits)]
    warm_up_s = min(30.0, size.mean_task_s)
    busy = fleet_check.busy_share(runs, fleet, warm_up_s=warm_up_s, left=night.left)
    found = fleet_check.latencies(runs, fleet)
    tasks = max(1, sum(run.is_recorded for run in runs))
    return {
        **asdict(size),
        "mean_task_s": size.mean_task_s,
        "cores": os.cpu_count(),
        "left": left,
        "wall_s": round(wall_s, 1),
        "inserted_s": round(inserted_s, 1),
        "tasks_per_s": round(tasks / wall_s, 2),
        "problems": problems,
        "modes": dict(Counter(line["mode"] for line in lines)),
        "busy_share": round(busy.share, 4),
        "slots_without_eligible_work": round(
            busy.idle_without / max(1.0, busy.busy + busy.idle_without + busy.idle_with_work), 4
        ),
        "latency": {name: fleet_check.summary(values) for name, values in found.items()},
        "cpu_s": cpu,
        "cpu_share_of_a_core": {name: round(used / wall_s, 3) for name, used in cpu.items()},
        "cpu_ms_per_task": {name: round(1000 * used / tasks, 2) for name, used in cpu.items()},
        "sql_round_trips_per_task": round(statistics["trips"] / tasks, 2),
        "sql_executions_per_task": round(statistics["executions"] / tasks, 2),
        "sql_by_text": statistics["by_text"],
        "loops": statistics["loops"],
        "steps": statistics["steps"],
    }


@dataclass(slots=True)
class Night:
    """What workers and SQL recorded."""

    runs: list[Run] = field(default_factory=list)
    left: Counter[tuple[str, tuple[str, ...]]] = field(default_factory=Counter)
    """Tasks that nobody had begun, by wish and keys."""
    problems: list[str] = field(default_factory=list)


def _read(db: Database, view: View, lines: list[dict[str, Any]], *, looked_at: float) -> Night:
    night = Night()
    by_task: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_task.setdefault(line["task"], []).append(line)
    index = counting()
    with db.read() as s:
        rows = s.scalars(sa.select(Task)).all()
    for row in rows:
        wish = proxy_facts.task_wish(row, view.fleet)
        view.add_wish(wish)
        keys = task_keys(row, view.repository_rows)
        mine = by_task.get(row.id, [])
        if row.state == TaskState.PENDING.value and not mine and not row.attempt:
            night.left[wish.key, keys] += 1
            continue
        runs = row.state == TaskState.RUNNING.value and not mine
        if row.state == TaskState.DONE.value and row.result != Result.SUCCESS.value:
            night.problems.append(f"{row.title}: {row.state} {row.result} {row.reason}")
        if (len(mine) != 1 and not runs) or row.attempt != 1:
            night.problems.append(
                f"{row.title}: {len(mine)} times begun, attempt {row.attempt}, {row.reason}"
            )
        if row.proxy_id is None or row.decision is None or not (mine or runs):
            continue
        claimed = datetime.fromisoformat(row.decision["at"]).timestamp()
        line = mine[-1] if mine else {"came": claimed, "began": claimed, "ended": looked_at}
        claim = RunningClaim(
            task_id=row.id,
            proxy_id=row.proxy_id,
            attempt=row.attempt,
            rank=facts.rank_of(line.get("mode") or row.mode),
            keys=keys,
        )
        night.runs.append(
            Run(
                task=row.id,
                proxy=row.proxy_id,
                keys=index.counted(claim),
                group=(wish.key, keys),
                made=row.created_at.timestamp(),
                claimed=claimed,
                came=line["came"],
                began=line["began"],
                ended=line["ended"],
                is_recorded=bool(mine),
            )
        )
    view.survey()
    every = [*(run.keys for run in night.runs), *(keys for _, keys in night.left)]
    view.named.update(key for keys in every for key in keys if key[0] in "dh")
    return night


def counting() -> ClaimIndex:
    """Asked for keys alone: it has no broker."""
    import redis

    return ClaimIndex(
        redis.Redis(), lambda: 0, spill_ms=0, network_rank=NETWORK_RANK, hotadd_ranks=HOTADD_RANKS
    )


def _fleet(view: View) -> Fleet:
    entries = {entry.proxy_id: entry for entry in view.entries()}
    ranks = {key: seen.ranks() for key, seen in view.surveys.items()}
    limits = view.limits()
    for entry in entries.values():
        limits[f"p:{entry.proxy_id}"] = entry.slots
        limits[f"a:{entry.proxy_id}"] = entry.attachable
    index = counting()
    kept: dict[tuple[str, str, tuple[str, ...]], tuple[str, ...] | None] = {}

    def keys_for(wish: str, proxy: str, keys: tuple[str, ...]) -> tuple[str, ...] | None:
        where = (wish, proxy, keys)
        if where not in kept:
            rank = ranks[wish].get(proxy)
            kept[where] = (
                None
                if rank is None
                else index.counted(
                    RunningClaim(task_id="", proxy_id=proxy, attempt=1, rank=rank, keys=keys)
                )
            )
        return kept[where]

    return Fleet(
        limits=limits,
        slots={entry.proxy_id: entry.slots for entry in entries.values()},
        keys_for=keys_for,
    )


# ---- for people -----------------------------------------------------------------------------------


def table(report: dict[str, Any]) -> str:
    rows = [
        (
            "disks, proxies, slots",
            f"{report['disks']}, {report['proxies']}, {report['proxies'] * report['slots']}",
        ),
        ("tasks take on average, s", f"{report['mean_task_s']:.1f}"),
        ("wall, s", f"{report['wall_s']}" + (f", {report['left']} left" if report["left"] else "")),
        ("tasks a second", f"{report['tasks_per_s']}"),
        ("slots busy while eligible work is left", f"{100 * report['busy_share']:.1f} %"),
        (
            "SQL round trips, executions a task",
            f"{report['sql_round_trips_per_task']}, {report['sql_executions_per_task']}",
        ),
    ]
    for name, found in report["latency"].items():
        rows.append(
            (f"{name}, p50 / p99 / max, s", f"{found['p50_s']} / {found['p99_s']} / {found['max_s']}")
        )
    for name, used in report["cpu_ms_per_task"].items():
        share = report["cpu_share_of_a_core"][name]
        rows.append((f"CPU of {name}", f"{used} ms a task, {100 * share:.0f} % of a core"))
    for name, found in report["steps"].items():
        if found["total_s"] >= 1:
            said = f"{found['count']} of {found['p50_s']} / {found['p99_s']} / {found['max_s']} s"
            rows.append((f"steps of {name}, p50 / p99 / max", said))
    rows.append(("problems", str(len(report["problems"]))))
    return "\n".join(f"{name:<42} {value}" for name, value in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=10_000)
    parser.add_argument("--disks", type=int, default=30_000)
    parser.add_argument("--proxies", type=int, default=200)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--compress", type=float, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--json", type=Path, default=HERE / "fleet.json")
    given = parser.parse_args()
    # So that what was started ends as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    size = Size(
        vms=given.vms,
        disks=given.disks,
        proxies=given.proxies,
        slots=given.slots,
        compress=given.compress,
        seed=given.seed,
    )
    report = run(size, look_after_s=None if given.minutes is None else 60 * given.minutes)
    sys.stdout.write(table(report) + "\n")
    for problem in report["problems"][:20]:
        sys.stdout.write(f"  {problem}\n")
    kept = json.loads(given.json.read_text()) if given.json.exists() else {}
    kept[f"{size.disks} disks, {size.proxies} proxies"] = report
    given.json.write_text(json.dumps(kept, indent=1) + "\n")
    return int(bool(report["problems"]))


if __name__ == "__main__":
    sys.exit(main())
