"""Files as servers have them: programs and texts of this machine, logs, mail, media, a database.

Everything made up is decided by the seed; what is copied from this machine is taken in sorted order.
Each maker writes about `budget_bytes` below a directory and returns what it wrote.
"""

import os
import random
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from vmhaul_lab import database

MIB = 1 << 20

# Trees of a Debian machine with very different kinds of files. What is absent is made up instead.
HOST_TREES = (
    Path("/usr/lib/python3"),
    Path("/usr/lib/python3.11"),
    Path("/etc"),
    Path("/usr/share/perl"),
    Path("/usr/share/doc"),
    Path("/usr/share/zoneinfo"),
    Path("/usr/lib/git-core"),
    Path("/usr/lib/x86_64-linux-gnu"),
    Path("/usr/bin"),
    Path("/usr/lib"),
)
_LARGEST_COPY_BYTES = 24 * MIB
_EPOCH = datetime(2026, 3, 2, 6, 0, tzinfo=UTC)
_TEXT = (
    "backup queue invoice customer order payment session worker cache request response timeout retry "
    "shipment ledger report account index page commit mirror archive policy window volume cluster "
    "the a of to and in that is was for on with as by at from not are this be or an which had were "
    "meeting offer contract budget review draft summary question answer morning week quarter project"
)
_WORDS = _TEXT.split()
_PATHS = ("/", "/login", "/api/v1/orders", "/api/v1/items", "/static/app.js", "/health", "/search")
_AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64)",
    "curl/8.5.0",
    "monitor/2.1",
    "Mozilla/5.0 (Windows NT 10.0)",
)


def words(rng: random.Random, count: int) -> str:
    """`count` words of plain text."""
    return " ".join(rng.choices(_WORDS, k=count))


def log_lines(rng: random.Random, budget_bytes: int) -> bytes:
    """Lines of a web server's access log, about `budget_bytes` of them."""
    moment = _EPOCH + timedelta(seconds=rng.randrange(10**7))
    lines: list[str] = []
    written = 0
    while written < budget_bytes:
        moment += timedelta(milliseconds=rng.randrange(1500))
        bits = rng.getrandbits(64)
        line = (
            f"10.{bits & 7}.{bits >> 3 & 255}.{bits >> 11 & 255} - - [{moment:%d/%b/%Y:%H:%M:%S} +0000] "
            f'"GET {_PATHS[bits >> 19 & 3]}?id={bits >> 24 & 0xFFFF} HTTP/1.1" {200 if bits >> 60 else 404} '
            f'{bits >> 40 & 0x3FFF} "-" "{_AGENTS[bits >> 21 & 3]}" {bits >> 54 & 1023} ms\n'
        )
        lines.append(line)
        written += len(line)
    return "".join(lines).encode()


def text(rng: random.Random, budget_bytes: int) -> bytes:
    """Prose of about `budget_bytes`."""
    paragraphs: list[str] = []
    written = 0
    while written < budget_bytes:
        paragraph = words(rng, rng.randrange(60, 200)) + ".\n\n"
        paragraphs.append(paragraph)
        written += len(paragraph)
    return "".join(paragraphs).encode()


def host_files(target: Path, budget_bytes: int, rng: random.Random) -> int:
    """Copies of this machine's own files under their own paths; text where there are too few.

    Only files that everybody may read are taken: a guest's disk must not hold this machine's keys.
    """
    written = 0
    # Another first tree for each disk, so that disks of one site differ.
    first = rng.randrange(len(HOST_TREES) - 4)
    for tree in HOST_TREES[first:] + HOST_TREES[:first]:
        for source in _readable_files(tree):
            copy = target / source.relative_to("/")
            if copy.exists():
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            written += copy.write_bytes(source.read_bytes())
            if written >= budget_bytes:
                return written
    return written + texts(target / "usr/share/texts", budget_bytes - written, rng)


def _readable_files(tree: Path) -> Iterator[Path]:
    for directory, folders, names in os.walk(tree):
        folders.sort()
        for name in sorted(names):
            path = Path(directory, name)
            try:
                facts = path.lstat()
            except OSError:
                continue
            if (
                stat.S_ISREG(facts.st_mode)
                and facts.st_mode & stat.S_IROTH
                and facts.st_size <= _LARGEST_COPY_BYTES
            ):
                yield path


def texts(target: Path, budget_bytes: int, rng: random.Random) -> int:
    """Prose files of 1 KiB to 256 KiB."""
    written = index = 0
    while written < budget_bytes:
        size = min(rng.choice((1, 4, 16, 64, 256)) << 10, budget_bytes - written)
        path = target / f"{index % 16:02d}" / f"text-{index:05d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        written += path.write_bytes(text(rng, size))
        index += 1
    return written


def logs(target: Path, budget_bytes: int, rng: random.Random) -> int:
    """Rotated logs of several services below var/log."""
    written = index = 0
    while written < budget_bytes:
        service = ("nginx", "app", "auth", "worker")[index % 4]
        suffix = f".{index // 4}" if index >= 4 else ""
        path = target / "var/log" / service / f"access.log{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = min(rng.randrange(256 << 10, 8 * MIB), budget_bytes - written)
        written += path.write_bytes(log_lines(rng, size))
        index += 1
    return written


def mail(target: Path, budget_bytes: int, rng: random.Random) -> int:
    """Mail folders: one small file for each message, some with an incompressible attachment."""
    written = index = 0
    while written < budget_bytes:
        user = ("anna", "bela", "carl", "dora", "emil")[rng.randrange(5)]
        path = target / "srv/mail" / user / "cur" / f"{1_700_000_000 + index}.M{index:06d}.mx1:2,S"
        path.parent.mkdir(parents=True, exist_ok=True)
        head = (
            f"From: {rng.choice(_WORDS)}@example.com\nTo: {user}@example.com\n"
            f"Subject: {words(rng, 5)}\nMessage-ID: <{rng.getrandbits(64):x}@example.com>\n\n"
        )
        body = head.encode() + text(rng, rng.randrange(800, 6000))
        if rng.random() < 0.1:
            body += rng.randbytes(rng.randrange(4 << 10, 120 << 10)).hex().encode()
        written += path.write_bytes(body)
        index += 1
    return written


def media(target: Path, budget_bytes: int, rng: random.Random) -> int:
    """Files that do not compress, 1 to 24 MiB each."""
    written = index = 0
    while written < budget_bytes:
        size = min(rng.randrange(1 * MIB, 24 * MIB), budget_bytes - written)
        path = target / "srv/media" / f"clip-{index:04d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for start in range(0, size, 4 * MIB):
                written += file.write(rng.randbytes(min(4 * MIB, size - start)))
        index += 1
    return written


def small_files(target: Path, budget_bytes: int, rng: random.Random) -> int:
    """Very many files below 16 KiB in a deep tree, as a build or a cache leaves them."""
    written = index = 0
    block = text(rng, 64 << 10)
    while written < budget_bytes:
        path = (
            target / "srv/cache" / f"{index % 64:02x}" / f"{index // 64 % 64:02x}" / f"obj-{index:06d}"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        size = rng.randrange(200, 16 << 10)
        start = rng.randrange(len(block) - size)
        written += path.write_bytes(
            f"{index} {rng.getrandbits(64):x}\n".encode() + block[start : start + size]
        )
        index += 1
    return written


def dump(target: Path, budget_bytes: int, rng: random.Random) -> int:
    """One large file: a database's text dump, half of it repeated from an earlier dump."""
    path = target / "srv/dumps/orders.sql"
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    first = [log_lines(rng, MIB) for _ in range(8)]
    with path.open("wb") as file:
        while written < budget_bytes:
            again = rng.random() < 0.5
            piece = first[rng.randrange(8)] if again else log_lines(rng, MIB)
            written += file.write(piece[: budget_bytes - written])
    return written


def sqlite(target: Path, budget_bytes: int, rng: random.Random) -> int:
    """A real SQLite database whose pages guests update in place."""
    path = target / database.PATH
    path.parent.mkdir(parents=True, exist_ok=True)
    return database.create(path, budget_bytes, rng)


MAKERS: dict[str, Callable[[Path, int, random.Random], int]] = {
    "host": host_files,
    "texts": texts,
    "logs": logs,
    "mail": mail,
    "media": media,
    "small": small_files,
    "dump": dump,
    "sqlite": sqlite,
}
