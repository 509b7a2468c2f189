"""The repository agent: `python -m proxy_worker.agent`. Its calls are those of `contracts.agent`.

It ends when its standard input does: a commit that has begun is finished, anything else is left as it is
(every step of a repository survives that).
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final, NoReturn

from pipeline.crypto.aead import AEAD_NAMES
from pipeline.crypto.unlock import Unlock, by_password, unlock_from_text
from pipeline.errors import (
    IntegrityError,
    PipelineError,
    TransientPipelineError,
    WrongPasswordError,
)
from pipeline.repair import PointSource, repair
from pipeline.repository import Repository, layout
from pipeline.repository.immutability import Immutability, keeping, retention_of
from pipeline.storage import Storage, open_storage
from proxy_worker.agent_extents import ExtentCalls
from proxy_worker.agent_keys import WRITING, KeyCalls, new_password, refuse_forgotten_epochs
from proxy_worker.cache_argument import cache_dir_of
from proxy_worker.contracts.agent import WRONG_KEY, decode_restore_point, encode_restore_point
from proxy_worker.contracts.envelope import Clock
from proxy_worker.turns import turn

_FINISHED_FIRST: Final = frozenset({"create", "commit"}) | WRITING
"""Calls that are finished when the server goes away in the middle."""
_END: Final = None


class CallError(Exception):
    """The request cannot be answered as it is."""


class Agent:
    """One repository, opened by the first call."""

    def __init__(self, clock: Clock, cache_dir: Path | None = None) -> None:
        """`cache_dir`: where this machine keeps caches of indexes; None: in memory."""
        self._clock = clock
        self._cache_dir = cache_dir
        self._repository: Repository | None = None
        self._own: Unlock | None = None
        self._calls: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "create": self._create,
            "open": self._open,
            "commit": self._commit,
            "points": self._points,
            "point": self._point,
            "forget": self._forget,
            "prune": self._prune,
            "check": self._check,
            "repair": self._repair,
            "space": self._space,
            "facts": self._facts,
            **KeyCalls(lambda: self._opened, self._own_key).calls(),
            "immutable": self._immutable,
            "recover": self._recover,
            "rebuild_index": self._rebuild_index,
            **ExtentCalls(_storage_secrets).calls(),
        }

    def answer(self, request: Any) -> dict[str, Any]:
        """The answer to one request; never raises."""
        number = request.get("id") if isinstance(request, dict) else None
        try:
            if not isinstance(request, dict):
                raise CallError("a request is an object")
            call = self._calls.get(str(request.get("call")))
            if call is None:
                raise CallError(f"there is no call {request.get('call')!r}")
            return {"id": number, "ok": call(request.get("args") or {})}
        except Exception as error:  # noqa: BLE001 - the server hears of everything
            # Neither the request nor local variables are printed: they hold passwords.
            traceback.print_exc()
            answer = {"kind": _kind(error), "message": _message(error)}
            if isinstance(error, WrongPasswordError):
                answer["reason"] = WRONG_KEY
            return {"id": number, "error": answer}

    @property
    def _opened(self) -> Repository:
        if self._repository is None:
            raise CallError("the repository is not open; create or open comes first")
        return self._repository

    def _own_key(self) -> Unlock:
        if self._own is None:
            raise CallError("the repository is not open; create or open comes first")
        return self._own

    # -- calls

    def _create(self, args: dict[str, Any]) -> dict[str, Any]:
        self._refuse_second()
        self._repository = Repository.create(
            self._storage(args, create=True),
            new_password(args["password"]),
            block_size_bytes=args["block_size_bytes"],
            clock=self._clock,
            cache_dir=self._cache_dir,
        )
        self._repository.immutability = _immutability(args)
        self._own = by_password(args["password"])
        return self._identity()

    def _open(self, args: dict[str, Any]) -> dict[str, Any]:
        self._refuse_second()
        own = unlock_from_text(args["password"])
        repository = Repository.open_by(
            self._storage(args), own, clock=self._clock, cache_dir=self._cache_dir
        )
        refuse_forgotten_epochs(repository, int(args.get("least_epoch") or 1))
        repository.immutability = _immutability(args)
        self._repository, self._own = repository, own
        return self._identity()

    def _storage(self, args: dict[str, Any], *, create: bool = False) -> Storage:
        days = int(args.get("immutable_days") or 0)
        storage = open_storage(args["location"], secrets=_storage_secrets(args), create=create)
        if days:
            retention_of(storage)  # refused now, not in the middle of a backup
        return keeping(storage, days, self._clock)

    def _refuse_second(self) -> None:
        if self._repository is not None:
            raise CallError("a repository is open already")

    def _identity(self) -> dict[str, Any]:
        repository = self._opened
        return {
            "repository_id": repository.id,
            "master_key": repository.key_material,
            "block_size_bytes": repository.block_size_bytes,
            "key_epoch": repository.key_epoch,
        }

    def _commit(self, args: dict[str, Any]) -> dict[str, Any]:
        point = decode_restore_point(args["point"])
        with turn(self._opened.storage.location, alone=False):
            created = self._opened.commit_point(point)
        return {"created": created, "immutable_until_s": self._opened.immutable_until_s(point.id)}

    def _points(self, args: dict[str, Any]) -> dict[str, Any]:
        del args
        return {"points": [encode_restore_point(point) for point in self._opened.points()]}

    def _point(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"point": encode_restore_point(self._opened.point(args["id"]))}

    def _forget(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"forgotten": self._opened.forget(args["ids"])}

    def _prune(self, args: dict[str, Any]) -> dict[str, Any]:
        with turn(self._opened.storage.location, alone=True):
            report = self._opened.prune(
                keep_work_ids=args["keep_task_ids"], min_age_s=args["min_age_s"]
            )
        return {
            "removed_packs": report.removed_packs,
            "removed_bytes": report.removed_bytes,
            "rewritten_bytes": report.rewritten_bytes,
            "kept_packs": report.kept_packs,
        }

    def _check(self, args: dict[str, Any]) -> dict[str, Any]:
        share = float(args["sample_share"])
        report = self._opened.check(
            # a sample that is asked for is meant to be read
            read_data=bool(args["read_data"]) or share > 0,
            sample_share=share if share > 0 else 1.0,
            sample_start=None if args.get("sample_start") is None else float(args["sample_start"]),
        )
        return {
            "problems": list(report.problems),
            "points": report.points,
            "packs": report.packs,
            "blobs": report.blobs,
            "read_bytes": report.read_bytes,
            "confidence": report.confidence,
            "damage": [
                {
                    "point_id": lost.point_id,
                    "disk_key": lost.disk_key,
                    "start_bytes": lost.start_bytes,
                    "end_bytes": lost.end_bytes,
                    "reason": lost.reason,
                }
                for lost in report.damage
            ],
        }

    def _repair(self, args: dict[str, Any]) -> dict[str, Any]:
        repository = self._opened
        with turn(repository.storage.location, alone=True):
            sources = [self._source(copy) for copy in args["copies"]]
            report = repair(repository, sources, dry_run=bool(args["dry_run"]))
        return {
            "damage": list(report.damage),
            "damaged_packs": report.damaged_packs,
            "damaged_blobs": report.damaged_blobs,
            "repaired_blobs": report.repaired_blobs,
            "repaired_from": report.repaired_from,
            "moved_blobs": report.moved_blobs,
            "stored_bytes": report.stored_bytes,
            "read_bytes": report.read_bytes,
            "problems": list(report.problems),
            "lost": [
                {
                    "point_id": lost.point_id,
                    "vm": lost.vm_name,
                    "disk_key": lost.disk_key,
                    "disk": lost.disk_label,
                    "start_bytes": lost.start_bytes,
                    "end_bytes": lost.end_bytes,
                    "reason": lost.reason,
                    "text": str(lost),
                }
                for lost in report.lost
            ],
        }

    def _source(self, copy: dict[str, Any]) -> PointSource:
        repository = Repository.open_with_key(
            open_storage(copy["location"], secrets=_storage_secrets(copy)),
            copy["key"],
            expected_id=copy["repository_id"],
            clock=self._clock,
            cache_dir=self._cache_dir,
        )
        return PointSource(copy["name"], repository)

    def _space(self, args: dict[str, Any]) -> dict[str, Any]:
        del args
        space = self._opened.space()
        return {
            "free_bytes": space.free_bytes,
            "total_bytes": space.total_bytes,
            "used_bytes": space.used_bytes,
        }

    def _facts(self, args: dict[str, Any]) -> dict[str, Any]:
        del args
        repository = self._opened
        sizes = [entry.size_bytes for entry in repository.storage.list(layout.PACKS)]
        return {
            "packs": len(sizes),
            "stored_bytes": sum(sizes),
            "features": list(repository.features),
            "key_epoch": repository.key_epoch,
            "keys": len(repository.list_keys()),
            "aead": AEAD_NAMES[repository.aead],
        }

    def _immutable(self, args: dict[str, Any]) -> dict[str, Any]:
        until_s = {point_id: self._opened.immutable_until_s(point_id) for point_id in args["ids"]}
        return {"until_s": until_s}

    def _rebuild_index(self, args: dict[str, Any]) -> dict[str, Any]:
        del args
        with turn(self._opened.storage.location, alone=True):
            report = self._opened.rebuild_index()
        return {
            "packs": report.packs,
            "blobs": report.blobs,
            "scanned_packs": report.scanned_packs,
            "unreadable": list(report.unreadable),
        }

    def _recover(self, args: dict[str, Any]) -> dict[str, Any]:
        """Object storage back to an earlier time, then the index from the packs."""
        from pipeline.storage.s3_recovery import recover_versions  # large, and rarely needed

        storage = open_storage(args["location"], secrets=_storage_secrets(args))
        try:
            done = recover_versions(
                getattr(storage, "versions", None), float(args["as_of_s"]), storage.location
            )
            opened = Repository.open_by(storage, unlock_from_text(args["password"]), clock=self._clock)
            rebuilt = opened.rebuild_index().packs
        finally:
            storage.close()
        return {
            "uncovered": done.uncovered,
            "set_aside": done.set_aside,
            "lost": list(done.lost),
            "rebuilt_packs": rebuilt,
            "key_epoch": opened.key_epoch,
        }


def _storage_secrets(args: dict[str, Any]) -> dict[str, str]:
    return {str(name): str(value) for name, value in (args.get("storage_secrets") or {}).items()}


def _immutability(args: dict[str, Any]) -> Immutability | None:
    days = int(args.get("immutable_days") or 0)
    return Immutability(days=days) if days else None


def _kind(error: Exception) -> str:
    if isinstance(error, IntegrityError):
        return "integrity"
    # An error of the machine below us may be over in a moment, like one that a driver calls transient.
    return "transient" if isinstance(error, TransientPipelineError | OSError) else "permanent"


def _message(error: Exception) -> str:
    if isinstance(error, PipelineError | CallError | OSError):
        return str(error)
    if isinstance(error, KeyError):
        return f"the request lacks {error}"
    if isinstance(error, ValueError | TypeError):
        return f"the request cannot be used: {error}"
    return f"the repository agent failed: {type(error).__name__}: {error}"


def serve(source: IO[bytes], sink: IO[bytes], clock: Clock, cache_dir: Path | None = None) -> None:
    """Answer requests until `source` ends."""
    agent = Agent(clock, cache_dir)
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    present = _Present()
    reader = threading.Thread(target=_read, args=(source, lines, present), daemon=True)
    reader.start()
    while (data := lines.get()) is not _END:
        try:
            request = json.loads(data)
        except ValueError:
            request = None
        with present.call(str(request.get("call")) if isinstance(request, dict) else ""):
            answer = agent.answer(request)
        try:
            sink.write(json.dumps(answer).encode() + b"\n")
            sink.flush()
        except BrokenPipeError:
            return


class _Present:
    """Which call is being answered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._name = ""

    def call(self, name: str) -> _Present:
        with self._lock:
            self._name = name
        return self

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._name = ""

    def end_process(self) -> None:
        """Unless a call is under way that has to be finished, or none is."""
        with self._lock:
            if self._name and self._name not in _FINISHED_FIRST:
                os._exit(0)


def _read(source: IO[bytes], lines: queue.SimpleQueue[bytes | None], present: _Present) -> None:
    for data in source:
        lines.put(data)
    lines.put(_END)
    # Whoever asked is gone. A check of terabytes must not go on for nobody.
    present.end_process()


def main() -> NoReturn:
    sink = sys.stdout.buffer
    # What libraries print must not come between the answers.
    sys.stdout = sys.stderr
    cache_dir = cache_dir_of(sys.argv)
    serve(sys.stdin.buffer, sink, time.time, cache_dir)  # noqa: TID251 - composition root
    sys.stderr.flush()
    # Not by way of the interpreter's end: that would wait for the lock of standard input, in which our
    # reading thread may sleep.
    os._exit(0)


if __name__ == "__main__":
    main()
