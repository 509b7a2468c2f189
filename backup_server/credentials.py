"""Secrets at rest, sealed with a key that lies outside the database.

Whoever has the database alone has no password of it; whoever has the key file as well has all.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from datetime import datetime
from pathlib import Path
from typing import Final

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Credential, new_id
from backup_server.errors import IntegrityError, SettingsError
from transports.vsphere.model import Secret

KEY_BYTES: Final = 32  # XSalsa20-Poly1305's key


def load_or_create_key(path: Path) -> bytes:
    """The 32 bytes of a key file, made with mode 0600 when there is none.

    Raises SettingsError when others may read the file or when it is not 32 bytes long.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_key(path)
    with os.fdopen(handle, "wb") as file:
        key = secrets.token_bytes(KEY_BYTES)
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key


def _read_key(path: Path) -> bytes:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise SettingsError(
                f"the key file {path} has mode {mode:04o}, so others may read it; "
                f"run: chmod 600 {path}, and change the stored passwords if somebody may have done so"
            )
        key = file.read()
    if len(key) != KEY_BYTES:
        raise SettingsError(
            f"the key file {path} is {len(key)} bytes long instead of {KEY_BYTES}; "
            "put the right file back, without it stored passwords cannot be read"
        )
    return key


class CredentialStore:
    """Seals and opens secrets. Works inside of the caller's transaction."""

    def __init__(self, key: bytes) -> None:
        self._box = SecretBox(key)

    def seal(self, secret: Secret) -> bytes:
        return bytes(self._box.encrypt(secret.reveal().encode()))

    def open(self, sealed: bytes) -> Secret:
        """IntegrityError when the text was not sealed with this server's key."""
        try:
            return Secret(self._box.decrypt(sealed).decode())
        except CryptoError:
            raise IntegrityError(
                "a stored secret cannot be opened with this server key; "
                "put the server.key back that belongs to this database, or enter the password again"
            ) from None

    def store(self, db: DbSession, kind: str, secret: Secret, now: datetime) -> str:
        """Id of a new credential row."""
        row = Credential(id=new_id(), kind=kind, sealed=self.seal(secret), created_at=now)
        db.add(row)
        db.flush()
        return row.id

    def replace(self, db: DbSession, credential_id: str, secret: Secret) -> None:
        db.get_one(Credential, credential_id).sealed = self.seal(secret)

    def fetch(self, db: DbSession, credential_id: str) -> Secret:
        return self.open(db.get_one(Credential, credential_id).sealed)

    def forget(self, db: DbSession, credential_id: str) -> None:
        row = db.get(Credential, credential_id)
        if row is not None:
            db.delete(row)


def new_join_token() -> Secret:
    """192 random bits; shown once, never stored."""
    return Secret("vmhj_" + secrets.token_urlsafe(24))


def token_hash(token: Secret) -> str:
    """What is stored of a random token. It has too many bits to be guessed, so no slow hash is needed."""
    return hashlib.sha256(token.reveal().encode()).hexdigest()
