"""A disk with a PostgreSQL data directory, and the same after a day of pgbench's writes.

Day two has every file where it was: pages that the server wrote are written in their places in the image
(debugfs tells which blocks a file has), what grew and what is new is added as files. No mount is needed;
the server runs as the user `postgres` when this runs as root.
"""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.images import Images, make_ext4, run_quietly, sync_files

PAGE_BYTES: Final = 4096
SCALE: Final = 30  # 100,000 rows each: 450 MB of tables
DAY_TRANSACTIONS: Final = 4000
CLIENTS: Final = 4
IMAGE_MIB: Final = 1024
USER: Final = "postgres"
DAY: Final = r"""
\set aid random_exponential(1, 100000 * :scale, 12)
\set bid random(1, 1 * :scale)
\set tid random(1, 10 * :scale)
\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, now());
END;
"""
"""pgbench's own transaction, but most of it on few accounts, as in life."""


def programs() -> Path | None:
    """Where the server's programs are; None where there are none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found and (name := shutil.which("initdb")):
        found = [Path(name)]
    return found[-1].parent if found else None


def build_database_images(directory: Path, *, scale: int = SCALE) -> Images:
    """Both images, in a directory that is empty."""
    server = Server(directory)
    data = directory / "data"
    server.run("initdb", "-D", data, "--no-sync", "-U", USER, "-A", "trust")
    (data / "postgresql.auto.conf").write_text("fsync = off\nlisten_addresses = ''\nautovacuum = on\n")
    with server.running(data):
        server.run("pgbench", "-i", "-q", "-s", str(scale), "-h", directory, "-U", USER, "postgres")
    before = directory / "before"
    shutil.copytree(data, before)
    day_one = directory / "day-one.raw"
    make_ext4(day_one, before, IMAGE_MIB * max(1, scale // SCALE))
    script = directory / "day.sql"
    script.write_text(DAY)
    script.chmod(0o644)
    with server.running(data):
        server.run(
            *("pgbench", "-n", "-c", str(CLIENTS), "-t", str(DAY_TRANSACTIONS * scale // SCALE)),
            *("-s", str(scale), "-f", script, "-h", directory, "-U", USER, "postgres"),
        )
    day_two = directory / "day-two.raw"
    run_quietly(["cp", "--sparse=always", str(day_one), str(day_two)])
    _carry_over(before, data, day_two, directory / "grown")
    for tree in (data, before):
        shutil.rmtree(tree)
    sync_files([day_one, day_two])
    return Images(day_one, day_two)


class Server:
    """A PostgreSQL server with its socket in a directory."""

    def __init__(self, directory: Path) -> None:
        found = programs()
        if found is None:
            raise RuntimeError("PostgreSQL's programs are missing; tools/setup.sh bench installs them")
        self._programs = found
        self._directory = directory
        self._prefix: list[str] = []
        if os.geteuid() == 0:
            self._prefix = ["runuser", "-u", USER, "--"]
            facts = pwd.getpwnam(USER)
            os.chown(directory, facts.pw_uid, facts.pw_gid)
            for parent in directory.parents:
                if not parent.stat().st_mode & 0o001:
                    raise RuntimeError(f"user {USER} cannot reach {directory}: open {parent} to it")

    def run(self, program: str, *arguments: str | Path) -> None:
        run_quietly([*self._prefix, str(self._programs / program), *map(str, arguments)])

    @contextmanager
    def running(self, data: Path) -> Iterator[None]:
        log = self._directory / "server.log"
        self.run("pg_ctl", "-D", data, "-w", "-l", log, "-o", f"-k {self._directory}", "start")
        try:
            yield
        finally:
            self.run("pg_ctl", "-D", data, "-w", "-m", "fast", "stop")


def _carry_over(before: Path, after: Path, image: Path, scratch: Path) -> None:
    """Bring an image that holds `before` to what `after` is."""
    scratch.mkdir()
    old, new = _files(before), _files(after)
    commands = [f"rm /{name}" for name in sorted(old - new)]
    commands += [f"write {after / name} /{name}" for name in sorted(new - old)]
    same = [name for name in sorted(old & new) if _differs(before / name, after / name)]
    blocks = _blocks_of(image, same)
    with image.open("r+b") as out:
        for number, name in enumerate(same):
            data = (after / name).read_bytes()
            there = (before / name).read_bytes()
            for page, block in enumerate(blocks[name]):
                at = page * PAGE_BYTES
                if data[at : at + PAGE_BYTES] not in (there[at : at + PAGE_BYTES], b""):
                    out.seek(block * PAGE_BYTES)
                    out.write(data[at : at + PAGE_BYTES])
            if len(data) > len(blocks[name]) * PAGE_BYTES:
                tail = scratch / str(number)
                tail.write_bytes(data[len(blocks[name]) * PAGE_BYTES :])
                commands.append(f"write {tail} /grown-{number}")
    _debugfs(image, commands)
    shutil.rmtree(scratch)


def _files(tree: Path) -> set[str]:
    return {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}


def _differs(one: Path, other: Path) -> bool:
    return one.read_bytes() != other.read_bytes()


def _blocks_of(image: Path, names: list[str]) -> dict[str, list[int]]:
    """Blocks of the image that each file has, in the file's order."""
    answer = _debugfs(image, [f"blocks /{name}" for name in names], writes=False)
    found: dict[str, list[int]] = {}
    name = ""
    for line in answer.splitlines():
        if line.startswith("debugfs: blocks /"):
            name = line.removeprefix("debugfs: blocks /").strip()
            found[name] = []
        elif name:
            found[name] += [int(word) for word in line.split() if word.isdigit() and word != "0"]
    return found


def _debugfs(image: Path, commands: list[str], *, writes: bool = True) -> str:
    script = image.with_suffix(".debugfs")
    script.write_text("".join(f"{command}\n" for command in commands))
    arguments = ["debugfs", *(["-w"] if writes else []), "-f", str(script), str(image)]
    answer = run_quietly(arguments)
    script.unlink()
    return answer
