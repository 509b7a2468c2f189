"""The server's hand on a repository: typed calls to its agent, and the pool of agents.

An agent is started with the first call, opened with the stored password, and started again when it
died. Calls to one agent wait for each other; long ones (check, prune) get an agent of their own, so
that commits do not wait for hours.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.orm import Session as DbSession

from backup_server.credentials import CredentialStore
from backup_server.db.engine import Database
from backup_server.db.tables import Repository
from backup_server.errors import ConflictError, NotFoundError, UnavailableError, WrongKeyError
from backup_server.services.agent_link import AgentLink, StartAgent
from pipeline.model import RestorePoint, RestorePointId
from proxy_worker.contracts.agent import decode_restore_point, encode_restore_point
from transports.vsphere.model import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRepository:
    """What `create` and `open` tell."""

    repository_id: str
    master_key: Secret
    block_size_bytes: int
    key_epoch: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    free_bytes: int
    total_bytes: int
    used_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageAccess:
    """How a repository's storage is opened, and for how many days it keeps what is written (0: it does not)."""

    secrets: Secret | None = None
    """A JSON object of texts; None: it asks for none."""
    immutable_days: int = 0

    def secrets_object(self) -> dict[str, str]:
        """For the agent's standard input, and nowhere else."""
        if self.secrets is None:
            return {}
        return {str(name): str(text) for name, text in json.loads(self.secrets.reveal()).items()}

    def args(self) -> dict[str, Any]:
        """The agent's arguments; none for a plain directory."""
        args: dict[str, Any] = {}
        if self.secrets is not None:
            args["storage_secrets"] = self.secrets_object()
        if self.immutable_days:
            args["immutable_days"] = self.immutable_days
        return args


_PLAIN: Final = StorageAccess()


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryAccess:
    """Where a repository is and how it is opened."""

    location: str
    password: Secret
    repository_id: str
    """What must be found there; empty: anything."""
    least_epoch: int = 1
    """The newest key epoch that the server knows of."""
    name: str = ""
    """What the server calls the repository, for messages; empty: it is not registered yet."""
    storage: StorageAccess = _PLAIN


def days_of(row: Repository) -> int:
    """For how many days the repository is immutable; 0: it is not."""
    return int((row.settings or {}).get("immutable_days") or 0)


def secrets_of(credentials: CredentialStore, s: DbSession, row: Repository) -> Secret | None:
    """The stored secrets of its storage, a JSON object; None where it needs none."""
    if row.storage_credential_id is None:
        return None
    return credentials.fetch(s, row.storage_credential_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairSource:
    """A repository that may hold what another one lost."""

    name: str
    location: str
    repository_id: str
    key: Secret
    storage: StorageAccess = _PLAIN


class RepositoryAgent:
    """One repository through one agent process. May be used by several threads."""

    def __init__(
        self,
        start: StartAgent,
        access: RepositoryAccess,
        *,
        timeout_s: float,
        long_timeout_s: float,
    ) -> None:
        self._start = start
        self._access = access
        self._timeout_s = timeout_s
        self._long_timeout_s = long_timeout_s
        self._lock = threading.Lock()
        self._link: AgentLink | None = None
        self._opened: OpenedRepository | None = None

    def _ready(self) -> tuple[AgentLink, OpenedRepository]:
        if self._link is not None and self._opened is not None and self._link.alive:
            return self._link, self._opened
        self._drop()
        link = self._start()
        try:
            opened = open_repository(link, self._access, timeout_s=self._timeout_s)
        except WrongKeyError as error:
            link.close()
            raise self._locked_out(error) from error
        except BaseException:
            link.close()
            raise
        self._link, self._opened = link, opened
        return link, opened

    def _locked_out(self, error: WrongKeyError) -> WrongKeyError:
        if not self._access.name:
            return error
        return WrongKeyError(
            f"{error.message}. The password that this server stores for repository {self._access.name!r} was "
            "changed or revoked elsewhere: give it one that opens, with `vmhaul repository key use "
            f"{self._access.name}`"
        )

    def _drop(self) -> None:
        if self._link is not None:
            self._link.close()
        self._link = self._opened = None

    def _call(self, call: str, args: dict[str, Any], timeout_s: float | None = None) -> dict[str, Any]:
        with self._lock:
            link, _ = self._ready()
            try:
                return link.call(call, args, timeout_s=timeout_s or self._timeout_s)
            except ConflictError:
                # Its directory may be another one by now (mounted again): the next call opens anew.
                self._drop()
                raise

    def opened(self) -> OpenedRepository:
        """Identity and master key; opens the repository when it is not open."""
        with self._lock:
            return self._ready()[1]

    def commit(self, point: RestorePoint) -> bool:
        """True when the point is new, False when it was there already, the same."""
        return bool(self._call("commit", {"point": encode_restore_point(point)})["created"])

    def points(self) -> list[RestorePoint]:
        answer = self._call("points", {}, self._long_timeout_s)
        return [decode_restore_point(point) for point in answer["points"]]

    def point(self, point_id: str) -> RestorePoint:
        return decode_restore_point(self._call("point", {"id": point_id})["point"])

    def forget(self, ids: Sequence[RestorePointId | str]) -> int:
        """Number of points that were there. Forgetting what is gone is no error."""
        return int(self._call("forget", {"ids": list(ids)})["forgotten"])

    def immutable_until(self, ids: Sequence[str]) -> dict[str, float]:
        """Until when the storage keeps each point, Unix time; 0.0 for one that it does not keep."""
        answer = self._call("immutable", {"ids": list(ids)}, self._long_timeout_s)
        return {str(one): float(until_s) for one, until_s in answer["until_s"].items()}

    def prune(self, keep_task_ids: Sequence[str], min_age_s: float) -> dict[str, Any]:
        args = {"keep_task_ids": list(keep_task_ids), "min_age_s": min_age_s}
        return self._call("prune", args, self._long_timeout_s)

    def check(
        self, *, read_data: bool, sample_share: float, sample_start: float | None = None
    ) -> dict[str, Any]:
        """`sample_start`: where in the packs' order the share begins; None: packs at random."""
        args: dict[str, Any] = {"read_data": read_data, "sample_share": sample_share}
        if sample_start is not None:
            args["sample_start"] = sample_start
        return self._call("check", args, self._long_timeout_s)

    def rebuild_index(self) -> dict[str, Any]:
        """packs, blobs, scanned_packs and unreadable, as the contract tells."""
        return self._call("rebuild_index", {}, self._long_timeout_s)

    def repair(self, copies: Sequence[RepairSource], *, dry_run: bool) -> dict[str, Any]:
        """What was found, brought back and lost, as the contract tells."""
        args = {
            "dry_run": dry_run,
            "copies": [
                {
                    "name": copy.name,
                    "location": copy.location,
                    "repository_id": copy.repository_id,
                    "key": copy.key.reveal(),
                    "storage_secrets": copy.storage.secrets_object(),
                }
                for copy in copies
            ],
        }
        return self._call("repair", args, self._long_timeout_s)

    def keys(self) -> dict[str, Any]:
        """keys, key_epoch and features, as the contract tells."""
        return self._call("keys", {}, self._long_timeout_s)

    def add_key(self, kind: str, *, password: Secret | None, label: str) -> tuple[str, Secret]:
        """Id, and the text of a key file or recovery key (empty for a password)."""
        args = {"kind": kind, "label": label}
        if password is not None:
            args["password"] = password.reveal()
        answer = self._call("add_key", args, self._long_timeout_s)
        return str(answer["id"]), Secret(str(answer["text"]))

    def change_key(self, old: Secret, new: Secret) -> str:
        args = {"old": old.reveal(), "new": new.reveal()}
        return str(self._call("change_key", args, self._long_timeout_s)["id"])

    def revoke_key(self, key_id: str) -> None:
        self._call("revoke_key", {"id": key_id}, self._long_timeout_s)

    def rotate_key(self, without: Sequence[str]) -> int:
        """Number of the new key epoch. This agent goes on with it; others must be opened again."""
        args = {"without": list(without)} if without else {}
        return int(self._call("rotate_key", args, self._long_timeout_s)["key_epoch"])

    def upgrade(self) -> dict[str, Any]:
        return self._call("upgrade", {}, self._long_timeout_s)

    def space(self) -> Space:
        answer = self._call("space", {})
        return Space(
            free_bytes=int(answer["free_bytes"]),
            total_bytes=int(answer["total_bytes"]),
            used_bytes=int(answer["used_bytes"]),
        )

    def facts(self) -> dict[str, Any]:
        """packs, stored_bytes, features, key_epoch, keys, aead."""
        answer = self._call("facts", {}, self._long_timeout_s)
        names = ("packs", "stored_bytes", "features", "key_epoch", "keys", "aead")
        return {name: answer[name] for name in names}

    def close(self) -> None:
        with self._lock:
            self._drop()


def open_repository(link: AgentLink, access: RepositoryAccess, *, timeout_s: float) -> OpenedRepository:
    """Open an existing repository; ConflictError when another one lies at its place."""
    args: dict[str, Any] = {"location": access.location, "password": access.password.reveal()}
    if access.least_epoch > 1:
        args["least_epoch"] = access.least_epoch
    args |= access.storage.args()
    opened = _opened(link.call("open", args, timeout_s=timeout_s))
    if access.repository_id and opened.repository_id != access.repository_id:
        raise ConflictError(
            f"at {access.location} lies repository {opened.repository_id}, not {access.repository_id}; "
            "mount the right directory there"
        )
    return opened


def create_repository(
    link: AgentLink,
    location: str,
    password: Secret,
    block_size_bytes: int,
    *,
    timeout_s: float,
    storage: StorageAccess = _PLAIN,
) -> OpenedRepository:
    args = {
        "location": location,
        "password": password.reveal(),
        "block_size_bytes": block_size_bytes,
        **storage.args(),
    }
    answer = link.call("create", args, timeout_s=timeout_s)
    return _opened({"block_size_bytes": block_size_bytes, **answer})


def _opened(answer: dict[str, Any]) -> OpenedRepository:
    try:
        return OpenedRepository(
            repository_id=str(answer["repository_id"]),
            master_key=Secret(str(answer["master_key"])),
            block_size_bytes=int(answer["block_size_bytes"]),
            key_epoch=int(answer.get("key_epoch") or 1),
        )
    except (KeyError, ValueError, TypeError):
        # The answer holds the master key: nothing of it may get into an error's text.
        raise UnavailableError(
            "the repository agent's answer to open lacks what it must hold"
        ) from None


class AgentPool:
    """One agent for each repository, by the id of its row."""

    def __init__(
        self,
        db: Database,
        credentials: CredentialStore,
        start: Callable[[], AgentLink],
        *,
        timeout_s: float,
        long_timeout_s: float,
    ) -> None:
        self._db = db
        self._credentials = credentials
        self.start = start
        self.timeout_s = timeout_s
        self.long_timeout_s = long_timeout_s
        self._lock = threading.Lock()
        self._agents: dict[str, RepositoryAgent] = {}

    def get(self, repository_id: str) -> RepositoryAgent:
        """The repository's agent (started with its first call). NotFoundError without such a row."""
        with self._lock:
            if repository_id not in self._agents:
                self._agents[repository_id] = self._make(repository_id)
            return self._agents[repository_id]

    @contextmanager
    def dedicated(self, repository_id: str) -> Iterator[RepositoryAgent]:
        """An agent of one's own for a long call; ended afterwards."""
        agent = self._make(repository_id)
        try:
            yield agent
        finally:
            agent.close()

    def access(self, repository_id: str, *, password: Secret | None = None) -> RepositoryAccess:
        """How a registered repository is opened; with `password` instead of the stored one, where given."""
        with self._db.read() as s:
            row = s.get(Repository, repository_id)
            if row is None:
                raise NotFoundError(f"there is no repository {repository_id}")
            return RepositoryAccess(
                location=row.location,
                password=password or self._credentials.fetch(s, row.credential_id),
                repository_id=row.repository_id,
                least_epoch=int((row.settings or {}).get("key_epoch") or 1),
                name=row.name,
                storage=StorageAccess(
                    secrets=secrets_of(self._credentials, s, row), immutable_days=days_of(row)
                ),
            )

    def _make(self, repository_id: str) -> RepositoryAgent:
        access = self.access(repository_id)
        return RepositoryAgent(
            self.start, access, timeout_s=self.timeout_s, long_timeout_s=self.long_timeout_s
        )

    def forget(self, repository_id: str) -> None:
        """End the repository's agent; the next get() starts another with what is stored then."""
        with self._lock:
            agent = self._agents.pop(repository_id, None)
        if agent is not None:
            agent.close()

    def close(self) -> None:
        with self._lock:
            agents, self._agents = list(self._agents.values()), {}
        for agent in agents:
            agent.close()
