"""The keys of a repository as a whole: opening by one, listing, adding, changing, revoking, and the rotation
of the data key. Each writes or deletes a few small objects; data is never touched.

Key operations of one repository MUST NOT run at the same time in two processes. A crash between any two
writes leaves a repository that opens with every key that opened it before, or with the new one as well.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pipeline.crypto.kdf import KdfCost
from pipeline.crypto.keyring import FIRST_EPOCH, MASTER_KEY_BYTES, MAX_EPOCH, Keyring
from pipeline.crypto.unlock import KEY_KIND_NAMES, KeyKind, Unlock
from pipeline.errors import (
    IntegrityError,
    KeyRefusedError,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectRetainedError,
    UnsupportedFormatError,
    WrongPasswordError,
)
from pipeline.repository import layout
from pipeline.repository.epochs import (
    Recipient,
    epoch_numbers,
    format_epoch,
    opened_secret,
    parse_epoch,
    read_epoch,
    verify_proof,
)
from pipeline.repository.format import KEY_VERSION
from pipeline.repository.keys import (
    KeyContents,
    KeyObject,
    checked_label,
    describe,
    open_key,
    parse_key,
    wrap_keyring,
)
from pipeline.storage.base import Storage

Damaged = IntegrityError | UnsupportedFormatError


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyInfo:
    """A key object, for people."""

    id: str
    """32 hexadecimal digits."""
    kind: KeyKind | None
    """None: it cannot be read."""
    label: str = ""
    created_at_s: float = 0.0
    """0 where nothing tells."""
    version: int = 0
    problem: str = ""
    """Why rotation would leave it behind; empty for a good key."""

    @property
    def kind_name(self) -> str:
        return KEY_KIND_NAMES[self.kind] if self.kind is not None else "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedKey:
    """What a key object and the epochs gave."""

    key_id: bytes
    version: int
    keyring: Keyring


# ---- opening ----------------------------------------------------------------------------------------


def open_by(storage: Storage, repository_id: bytes, unlock: Unlock) -> OpenedKey:
    """All keys of a repository, by the first key object that `unlock` opens.

    Raises WrongPasswordError, and IntegrityError where damage may be what keeps it from opening.
    """
    damaged = ""
    refused: WrongPasswordError | None = None
    kinds: set[KeyKind] = set()
    for key in _key_objects(storage):
        try:
            if isinstance(key, _Unreadable):
                raise key.error
            kinds.add(key.kind)
            contents = open_key(key, unlock, repository_id)
            if contents is not None:
                return _with_epochs(storage, repository_id, key, contents)
        except WrongPasswordError as error:
            refused = error
        except (IntegrityError, UnsupportedFormatError) as error:
            damaged = f"{layout.key_name(key.key_id)}: {error}"
    if refused is not None:
        raise refused
    if damaged:
        raise IntegrityError(f"no key of {storage.location} opens, and one is damaged: {damaged}")
    raise _wrong(storage, unlock, kinds)


def _wrong(storage: Storage, unlock: Unlock, kinds: set[KeyKind]) -> WrongPasswordError:
    name = KEY_KIND_NAMES[unlock.kind]
    if kinds and unlock.kind not in kinds:
        others = " or ".join(f"a {KEY_KIND_NAMES[kind]}" for kind in sorted(kinds))
        return WrongPasswordError(
            f"the repository in {storage.location} has no {name} (any more); open it with {others}"
        )
    return WrongPasswordError(f"wrong {name} for the repository in {storage.location}")


def _with_epochs(
    storage: Storage, repository_id: bytes, key: KeyObject, contents: KeyContents
) -> OpenedKey:
    """The keyring of an opened key object with all epochs that came after it was made."""
    keyring = Keyring(contents.master_key, repository_id, contents.epoch_secrets)
    name = layout.key_name(key.key_id)
    numbers = epoch_numbers(storage)
    newest = max(numbers, default=FIRST_EPOCH)
    refuse_older_epochs(storage, keyring)
    for number in range(keyring.epoch + 1, newest + 1):
        epoch = read_epoch(storage, keyring, number)
        secret = (
            opened_secret(epoch, key.key_id, contents.private_key) if contents.private_key else None
        )
        if secret is None:
            raise WrongPasswordError(
                f"{name} opens, but was not given the data key of epoch {number}: it was revoked before the "
                "data key was changed, or put back from an old copy; use another password"
            )
        verify_proof(keyring, epoch, secret)
        keyring = keyring.with_epoch(number, secret)
    return OpenedKey(key_id=key.key_id, version=key.version, keyring=keyring)


def refuse_older_epochs(storage: Storage, keyring: Keyring) -> None:
    """Nobody who has seen a key epoch goes back behind it. Raises IntegrityError."""
    newest = max(epoch_numbers(storage), default=FIRST_EPOCH)
    if newest < keyring.epoch:
        raise IntegrityError(
            f"{layout.epoch_name(newest + 1)} is missing from {storage.location}, which is at key epoch "
            f"{keyring.epoch}: somebody put an old state of it back; bring the object back from a copy"
        )


# ---- reading what lies there ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unreadable:
    key_id: bytes
    error: Damaged


def _key_objects(storage: Storage) -> Iterator[KeyObject | _Unreadable]:
    for entry in storage.list(layout.KEYS):
        key_id = layout.key_id_of(entry.name)
        if key_id is None:
            continue  # nothing that vmhaul wrote: an editor's copy, say
        try:
            yield parse_key(key_id, storage.read(entry.name))
        except ObjectNotFoundError:
            continue  # revoked since the listing
        except (IntegrityError, UnsupportedFormatError) as error:
            yield _Unreadable(key_id=key_id, error=error)


class KeyStore:
    """Key operations of one open repository."""

    def __init__(self, storage: Storage, keyring: Keyring, cost: KdfCost) -> None:
        self._storage = storage
        self._keyring = keyring
        self._cost = cost

    def list_keys(self) -> tuple[KeyInfo, ...]:
        """Every key object, also those that rotation would leave behind, with the reason. By age."""
        found = [self._info(key) for key in _key_objects(self._storage)]
        return tuple(sorted(found, key=lambda info: (info.created_at_s, info.id)))

    def _info(self, key: KeyObject | _Unreadable) -> KeyInfo:
        name = layout.key_name(key.key_id)
        if isinstance(key, _Unreadable):
            return KeyInfo(id=key.key_id.hex(), kind=None, problem=f"{name}: {key.error}")
        if key.version != KEY_VERSION:
            return KeyInfo(
                id=key.key_id.hex(),
                kind=key.kind,
                version=key.version,
                problem=f"{name} is of version 1: change its password to the same or another one, which "
                "brings it to version 2, or revoke it",
            )
        label, created_at_s, problem = "", 0, ""
        try:
            described = describe(key, self._keyring)
            label, created_at_s = described.label, described.created_at_s
            self._refuse_planted(key)
        except IntegrityError as error:
            problem = str(error)
        return KeyInfo(
            id=key.key_id.hex(),
            kind=key.kind,
            label=label,
            created_at_s=created_at_s,
            version=key.version,
            problem=problem,
        )

    def _refuse_planted(self, key: KeyObject) -> None:
        """A key object of an older epoch counts only when the newest epoch was given to it: whoever was
        revoked can still make one of an epoch that he knew. Raises IntegrityError.
        """
        if key.epoch == self._keyring.epoch:
            return
        newest = read_epoch(self._storage, self._keyring, self._keyring.epoch)
        verify_proof(self._keyring, newest, self._keyring.secret_of(newest.number))
        if not newest.is_given_to(Recipient(key_id=key.key_id, public_key=key.public_key)):
            raise IntegrityError(
                f"{layout.key_name(key.key_id)} was not given key epoch {newest.number}: it was revoked and put "
                "back, or planted; revoke it"
            )

    # ---- changing -------------------------------------------------------------------------------

    def add(self, unlock: Unlock, label: str, created_at_s: int) -> bytes:
        """Store a key object for `unlock`; its id. Raises ValueError for a label or password that cannot be."""
        checked_label(label)
        if unlock.kind is KeyKind.PASSWORD and not unlock.password:
            raise ValueError("a password must not be empty")
        key_id = layout.new_object_id()
        data = wrap_keyring(
            self._keyring, unlock, key_id, label=label, created_at_s=created_at_s, cost=self._cost
        )
        if open_key(parse_key(key_id, data), unlock, self._keyring.repository_id) is None:
            raise IntegrityError("a new key object did not open again; test this machine's memory")
        self._storage.put(layout.key_name(key_id), data)
        return key_id

    def opened_by(self, unlock: Unlock) -> list[KeyObject]:
        """Every key object that `unlock` opens."""
        repository_id = self._keyring.repository_id
        return [
            key
            for key in _key_objects(self._storage)
            if not isinstance(key, _Unreadable) and open_key(key, unlock, repository_id) is not None
        ]

    def change(self, old: Unlock, new: Unlock, created_at_s: int) -> bytes:
        """`new` opens what `old` opened, under the same label, and `old` opens nothing any more. The new
        id. Raises WrongPasswordError.
        """
        replaced = self.opened_by(old)
        if not replaced:
            raise WrongPasswordError(
                f"the old {KEY_KIND_NAMES[old.kind]} does not open the repository in {self._storage.location}"
            )
        label = next((info.label for info in map(self._info, replaced) if info.label), "")
        key_id = self.add(new, label, created_at_s)
        for key in replaced:
            self._delete(key.key_id, f"the new one opens already, as key {key_id.hex()}, but ")
        return key_id

    def modernise(self, unlock: Unlock, created_at_s: int) -> bytes | None:
        """Bring the key objects of version 1 that `unlock` opens to version 2; the id of the one that it opens
        then, None when there was nothing to do.
        """
        there = _key_objects(self._storage)
        if all(isinstance(key, _Unreadable) or key.version == KEY_VERSION for key in there):
            return None  # without the time that trying a password takes
        opened = self.opened_by(unlock)
        old = [key for key in opened if key.version != KEY_VERSION]
        if not old:
            return None
        new = [key.key_id for key in opened if key.version == KEY_VERSION]
        key_id = new[0] if new else self.add(unlock, "", created_at_s)
        for key in old:
            with contextlib.suppress(ObjectRetainedError):  # then rotation names it
                self._storage.delete(layout.key_name(key.key_id))
        return key_id

    def revoke(self, key_id: str) -> None:
        """Delete a key object. Raises KeyRefusedError for the last good one, and for one that is not there."""
        keys = self.list_keys()
        named = [info for info in keys if info.id == key_id]
        if not named:
            raise KeyRefusedError(f"the repository in {self._storage.location} has no key {key_id}")
        others = [info for info in keys if info.id != key_id and self._opens(info)]
        if not others:
            raise KeyRefusedError(
                f"key {key_id} is the last one that opens the repository in {self._storage.location}; "
                "add another one first"
            )
        self._delete(bytes.fromhex(key_id), "")

    def _delete(self, key_id: bytes, before: str) -> None:
        try:
            self._storage.delete(layout.key_name(key_id))
        except ObjectRetainedError as error:
            raise KeyRefusedError(
                f"{before}{error}. Until it can be deleted, leave this key out of every change of the data key: "
                f"`vmhaul repository key rotate NAME --without {key_id.hex()}`"
            ) from error

    def rotate(self, created_at_s: int, without: Collection[str] = ()) -> tuple[int, bytes]:
        """Begin a new key epoch for new data, which the keys `without` are not given; its number and secret.

        Raises KeyRefusedError naming the other key objects that could not be given it, and when none is left.
        """
        keys = [key for key in _key_objects(self._storage) if key.key_id.hex() not in without]
        if not keys:
            raise KeyRefusedError("no key would open the new data; leave out fewer keys")
        if problems := [info.problem for info in map(self._info, keys) if info.problem]:
            raise KeyRefusedError("the data key cannot be changed: " + "; ".join(problems))
        number = self._keyring.epoch + 1
        newest = max(epoch_numbers(self._storage), default=FIRST_EPOCH)
        if newest != self._keyring.epoch or number > MAX_EPOCH:
            raise KeyRefusedError(
                f"the repository in {self._storage.location} is at key epoch {newest}, and epoch {number} does "
                "not follow; open it again"
            )
        recipients = [
            Recipient(key_id=key.key_id, public_key=key.public_key)
            for key in keys
            if not isinstance(key, _Unreadable)
        ]
        secret = os.urandom(MASTER_KEY_BYTES)
        data = format_epoch(self._keyring, number, secret, created_at_s, recipients)
        verify_proof(self._keyring, parse_epoch(self._keyring, number, data), secret)
        try:
            self._storage.put(layout.epoch_name(number), data)
        except ObjectExistsError as error:
            raise KeyRefusedError(
                f"somebody else changed the data key of {self._storage.location} in this moment; open it again"
            ) from error
        return number, secret

    def _opens(self, info: KeyInfo) -> bool:
        """Whether a key object, as far as one can see, opens the repository: version 1 does until the
        first rotation.
        """
        if info.version == KEY_VERSION:
            return not info.problem
        return info.kind is not None and self._keyring.epoch == FIRST_EPOCH
