"""The repository agent's calls about keys; section "Keys" of `contracts.agent`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from pipeline.crypto.unlock import (
    KeyKind,
    Unlock,
    by_password,
    key_file_text,
    looks_like_a_key,
    new_key_file,
    new_recovery_key,
    recovery_key_text,
    unlock_from_text,
)
from pipeline.errors import IntegrityError, KeyRefusedError
from pipeline.repository import Repository
from proxy_worker.turns import turn

KINDS: Final = {
    "password": KeyKind.PASSWORD,
    "key-file": KeyKind.KEY_FILE,
    "recovery": KeyKind.RECOVERY,
}
_NAMES: Final = {kind: name for name, kind in KINDS.items()}
WRITING: Final = frozenset({"add_key", "change_key", "revoke_key", "rotate_key", "upgrade"})
"""Calls that are finished when the server goes away in the middle."""


class KeyCalls:
    """Bound to the agent's one repository."""

    def __init__(self, opened: Callable[[], Repository], own: Callable[[], Unlock]) -> None:
        """`own`: what the repository was opened with."""
        self._opened = opened
        self._own = own

    def calls(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        return {
            "keys": self._keys,
            "add_key": self._add,
            "change_key": self._change,
            "revoke_key": self._revoke,
            "rotate_key": self._rotate,
            "upgrade": self._upgrade,
        }

    def _keys(self, args: dict[str, Any]) -> dict[str, Any]:
        del args
        repository = self._opened()
        return {
            "keys": [
                {
                    "id": info.id,
                    "kind": "unreadable" if info.kind is None else _NAMES[info.kind],
                    "label": info.label,
                    "created_at_s": info.created_at_s,
                    "version": info.version,
                    "problem": info.problem,
                    "own": info.id == repository.opened_key_id,
                }
                for info in repository.list_keys()
            ],
            "key_epoch": repository.key_epoch,
            "features": list(repository.features),
        }

    def _add(self, args: dict[str, Any]) -> dict[str, Any]:
        kind = KINDS[args["kind"]]
        if kind is KeyKind.PASSWORD:
            unlock, text = by_password(new_password(args["password"])), ""
        elif kind is KeyKind.KEY_FILE:
            unlock = new_key_file()
            text = key_file_text(unlock, self._opened().id)
        else:
            unlock = new_recovery_key()
            text = recovery_key_text(unlock)
        with self._turn() as repository:
            return {"id": repository.add_key(unlock, args.get("label", "")), "text": text}

    def _change(self, args: dict[str, Any]) -> dict[str, Any]:
        old, new = unlock_from_text(args["old"]), by_password(new_password(args["new"]))
        if old == self._own():
            # However it was typed. The server would go on with a key that opens nothing.
            raise KeyRefusedError(
                "the old key is the one that this server itself opens the repository with; change that one by "
                "leaving out the old key (`vmhaul repository key change`)"
            )
        with self._turn() as repository:
            return {"id": repository.change_key(old, new)}

    def _revoke(self, args: dict[str, Any]) -> dict[str, Any]:
        with self._turn() as repository:
            if args["id"] == repository.opened_key_id:
                raise KeyRefusedError(
                    f"key {args['id']} is the one that this server itself opens the repository with; give the "
                    "server another password first (`vmhaul repository key change` or `key use`)"
                )
            repository.revoke_key(args["id"])
        return {}

    def _rotate(self, args: dict[str, Any]) -> dict[str, Any]:
        without = [str(key_id) for key_id in args.get("without") or ()]
        with self._turn() as repository:
            if repository.opened_key_id in without:
                raise KeyRefusedError(
                    "the key that this server itself opens the repository with cannot be left out; give the server "
                    "another password first (`vmhaul repository key change` or `key use`)"
                )
            return {"key_epoch": repository.rotate_data_key(without=without)}

    def _upgrade(self, args: dict[str, Any]) -> dict[str, Any]:
        del args
        with self._turn() as repository:
            added = repository.upgrade_features()
            repository.modernise_key(self._own())
        return {"added": list(added), "features": list(repository.features)}

    @contextmanager
    def _turn(self) -> Iterator[Repository]:
        """Nobody commits, prunes or changes keys meanwhile; the server's own key is of this version first."""
        repository = self._opened()
        with turn(repository.storage.location, alone=True):
            repository.modernise_key(self._own())
            yield repository


def new_password(text: str) -> str:
    """Raises ValueError for what would be taken for a key file or recovery key when it is given later."""
    if not text or looks_like_a_key(text):
        raise ValueError("a password must not be empty, a recovery key or the text of a key file")
    return text


def refuse_forgotten_epochs(repository: Repository, least_epoch: int) -> None:
    """Raises IntegrityError when the repository is at an older key epoch than was seen before."""
    if repository.key_epoch < least_epoch:
        raise IntegrityError(
            f"the repository in {repository.storage.location} is at key epoch {repository.key_epoch}, and this "
            f"server has seen epoch {least_epoch}: somebody put an old state of it back; bring epochs/ and keys/ "
            "back from a copy"
        )
