"""A repository agent in memory, bound to `proxy_worker.contracts.agent`'s table of calls."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from backup_server.errors import UnavailableError
from backup_server.services.agent_link import AgentLink, error_from
from proxy_worker.contracts.agent import decode_restore_point, encode_restore_point
from tests.fakes.crash import CrashPlan


@dataclass
class FakeRepository:
    password: str
    block_size_bytes: int = 1 << 20
    repository_id: str = field(default_factory=lambda: str(uuid4()))
    master_key: str = field(default_factory=lambda: secrets.token_hex(32))
    points: dict[str, dict[str, Any]] = field(default_factory=dict)
    pruned: list[dict[str, Any]] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    damage: list[dict[str, Any]] = field(default_factory=list)
    beyond_repair: list[dict[str, Any]] = field(default_factory=list)
    """Of `damage`: what a repair cannot bring back."""
    repairs: list[dict[str, Any]] = field(default_factory=list)
    checked: list[tuple[float, float | None]] = field(default_factory=list)
    """Share and start of each check's sample."""
    storage_secrets: dict[str, str] = field(default_factory=dict)
    immutable_days: int = 0
    immutable_until_s: dict[str, float] = field(default_factory=dict)
    recovered_to_s: list[float] = field(default_factory=list)
    key_epoch: int = 1


class FakeRepositories:
    """What lies on the disks, by location; outlives all agents."""

    def __init__(self, plan: CrashPlan | None = None) -> None:
        self.plan = plan
        self.at: dict[str, FakeRepository] = {}
        self.scripted: dict[str, list[dict[str, str]]] = {}
        self.started = 0

    def fail(self, call: str, kind: str, message: str, *, reason: str = "") -> None:
        """The next call of that name answers this error ("dead": the agent dies instead)."""
        error = {"kind": kind, "message": message, "reason": reason}
        self.scripted.setdefault(call, []).append(error)

    def start(self) -> AgentLink:
        self.started += 1
        return FakeAgent(self)


class FakeAgent:
    def __init__(self, site: FakeRepositories) -> None:
        self._site = site
        self._repository: FakeRepository | None = None
        self.alive = True

    def close(self) -> None:
        self.alive = False

    def call(self, call: str, args: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        assert timeout_s > 0
        if not self.alive:
            raise UnavailableError("the agent is dead")
        if self._site.plan is not None and call in ("commit", "forget"):
            self._site.plan.point(f"before {call}")
        errors = self._site.scripted.get(call)
        if errors:
            error = errors.pop(0)
            if error["kind"] == "dead":
                self.alive = False
                raise UnavailableError("the agent died")
            raise error_from(error)
        # Through JSON, as through the pipe.
        answer = json.loads(json.dumps(getattr(self, f"_{call}")(**json.loads(json.dumps(args)))))
        if "error" in answer:
            raise error_from(answer["error"])
        if self._site.plan is not None and call in ("commit", "forget"):
            self._site.plan.point(f"after {call}")
        return dict(answer)

    @property
    def _open_one(self) -> FakeRepository:
        assert self._repository is not None, "create or open come first"
        return self._repository

    def _create(
        self,
        *,
        location: str,
        password: str,
        block_size_bytes: int,
        storage_secrets: dict[str, str] | None = None,
        immutable_days: int = 0,
    ) -> dict[str, Any]:
        if location in self._site.at:
            return {"error": {"kind": "permanent", "message": f"{location} is not empty"}}
        found = FakeRepository(
            password=password,
            block_size_bytes=block_size_bytes,
            storage_secrets=storage_secrets or {},
            immutable_days=immutable_days,
        )
        self._site.at[location] = self._repository = found
        return {"repository_id": found.repository_id, "master_key": found.master_key}

    def _open(
        self,
        *,
        location: str,
        password: str,
        least_epoch: int = 1,
        storage_secrets: dict[str, str] | None = None,
        immutable_days: int = 0,
    ) -> dict[str, Any]:
        assert least_epoch >= 1
        found = self._site.at.get(location)
        if found is None:
            return {"error": {"kind": "permanent", "message": f"no repository at {location}"}}
        if found.password != password:
            return {"error": {"kind": "permanent", "message": "the password is wrong"}}
        if found.key_epoch < least_epoch:
            return {"error": {"kind": "integrity", "message": "somebody put an old state of it back"}}
        if found.storage_secrets != (storage_secrets or {}):
            return {"error": {"kind": "permanent", "message": "the storage refuses these keys"}}
        found.immutable_days = immutable_days
        self._repository = found
        return {
            "repository_id": found.repository_id,
            "master_key": found.master_key,
            "block_size_bytes": found.block_size_bytes,
        }

    def _commit(self, *, point: dict[str, Any]) -> dict[str, Any]:
        decoded = decode_restore_point(point)
        known = self._open_one.points.get(decoded.id)
        if known is not None and known != point:
            return {"error": {"kind": "integrity", "message": "another point has this id"}}
        for disk in decoded.disks:
            if not disk.map_root:
                return {"error": {"kind": "integrity", "message": f"no map of {disk.label}"}}
        self._open_one.commits.append(decoded.id)
        self._open_one.points[decoded.id] = encode_restore_point(decoded)
        return {"created": known is None}

    def _immutable(self, *, ids: list[str]) -> dict[str, Any]:
        known = self._open_one.immutable_until_s
        return {"until_s": {one: known.get(one, 0.0) for one in ids}}

    def _recover(
        self, *, location: str, password: str, storage_secrets: dict[str, str], as_of_s: float
    ) -> dict[str, Any]:
        found = self._site.at[location]
        assert (found.password, found.storage_secrets) == (password, storage_secrets)
        found.recovered_to_s.append(as_of_s)
        found.key_epoch = 1
        done = {"uncovered": 3, "set_aside": 1, "lost": [], "rebuilt_packs": 2}
        return {**done, "key_epoch": found.key_epoch}

    def _points(self) -> dict[str, Any]:
        return {"points": list(self._open_one.points.values())}

    def _point(self, *, id: str) -> dict[str, Any]:  # noqa: A002 - the contract's name
        if id not in self._open_one.points:
            return {"error": {"kind": "permanent", "message": f"no point {id}"}}
        return {"point": self._open_one.points[id]}

    def _forget(self, *, ids: list[str]) -> dict[str, Any]:
        gone = [self._open_one.points.pop(one, None) for one in ids]
        return {"forgotten": sum(point is not None for point in gone)}

    def _prune(self, *, keep_task_ids: list[str], min_age_s: float) -> dict[str, Any]:
        self._open_one.pruned.append({"keep_task_ids": keep_task_ids, "min_age_s": min_age_s})
        return {"removed_packs": 1, "removed_bytes": 10, "rewritten_bytes": 0, "kept_packs": 2}

    def _check(
        self, *, read_data: bool, sample_share: float, sample_start: float | None = None
    ) -> dict[str, Any]:
        assert 0 <= sample_share <= 1
        self._open_one.checked.append((sample_share, sample_start))
        return {
            "damage": self._open_one.damage,
            "confidence": f"{sample_share:.0%} was read" if read_data else "",
            "problems": self._open_one.problems,
            "points": len(self._open_one.points),
            "packs": 3,
            "blobs": 9,
            "read_bytes": 100 if read_data else 0,
        }

    def _repair(self, *, copies: list[dict[str, str]], dry_run: bool) -> dict[str, Any]:
        self._open_one.repairs.append({"copies": copies, "dry_run": dry_run})
        found, lost = self._open_one.damage, self._open_one.beyond_repair
        if not dry_run:
            self._open_one.damage, self._open_one.problems = lost, []
        return {
            "damage": [str(entry["reason"]) for entry in found],
            "damaged_packs": len(found),
            "damaged_blobs": len(found),
            "repaired_blobs": len(found) - len(lost),
            "repaired_from": {copies[0]["name"]: len(found) - len(lost)} if copies else {},
            "moved_blobs": 1,
            "stored_bytes": 10,
            "read_bytes": 100,
            "problems": [],
            "lost": [{**entry, "vm": "vm", "disk": "disk", "text": entry["reason"]} for entry in lost],
        }

    def _space(self) -> dict[str, Any]:
        return {"free_bytes": 50 << 30, "total_bytes": 100 << 30, "used_bytes": 50 << 30}

    def _facts(self) -> dict[str, Any]:
        return {
            "packs": 3,
            "stored_bytes": 1000,
            "features": ["key-epochs", "patches"],
            "key_epoch": 1,
            "keys": 1,
            "aead": "aegis-256",
        }
