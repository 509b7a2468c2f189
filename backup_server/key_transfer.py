"""The keys of a server in one file that a password seals, for the second server on the same database.

In it: `server.key`, `server-signing.key` and, where the server has one, the certificate authority in `tls/`. Nothing
else of a data directory may be the same on two servers. What a directory has already is never overwritten.

The file is JSON: how the key is derived from the password (Argon2id), and the sealed keys (XSalsa20-Poly1305).
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.secret import SecretBox

from backup_server.credentials import KEY_BYTES, load_or_create_key
from backup_server.errors import InvalidError, NotFoundError, SettingsError

FORMAT: Final = "vmhaul-server-keys"
VERSION: Final = 1
MIN_PASSWORD_CHARS: Final = 12
KEY_FILES: Final = ("server.key", "server-signing.key")
AUTHORITY_FILES: Final = ("tls/ca.key", "tls/ca.pem")
MAX_FILE_BYTES: Final = 1 << 20
_SALT_BYTES: Final = 16
_OPS: Final = 4
_MEMORY_KIB: Final = 128 * 1024
_LEAST_MEMORY_KIB: Final = 8
_MOST_OPS: Final = 64
_MOST_MEMORY_KIB: Final = 1 << 20
"""A file from elsewhere must not make this machine reckon for hours, or take all of its memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """Names of files, relative to the data directory."""

    written: tuple[str, ...]
    same: tuple[str, ...]
    """Were there already, with the same content."""


def export_keys(
    data_dir: Path, password: str, *, ops: int = _OPS, memory_kib: int = _MEMORY_KIB
) -> str:
    """The sealed file's text. NotFoundError when the directory has no keys, SettingsError when they are damaged,
    InvalidError when the password is too short. `ops`, `memory_kib`: what one guess of the password costs.
    """
    if len(password) < MIN_PASSWORD_CHARS:
        raise InvalidError(
            f"the password must have {MIN_PASSWORD_CHARS} characters or more: whoever guesses it can read every "
            "stored password"
        )
    missing = [name for name in KEY_FILES if not (data_dir / name).exists()]
    if missing:
        raise NotFoundError(
            f"{data_dir} has no {missing[0]}: start the server there once, or name its data directory with --data"
        )
    for name in KEY_FILES:
        load_or_create_key(data_dir / name)  # says what is wrong with its mode or length
    names = KEY_FILES + tuple(n for n in AUTHORITY_FILES if (data_dir / n).exists())
    files = {name: (data_dir / name).read_bytes() for name in names}
    _check(files)
    salt = secrets.token_bytes(_SALT_BYTES)
    box = SecretBox(_derive(password, salt, ops, memory_kib))
    inside = json.dumps({name: _text(content) for name, content in files.items()})
    content = {
        "format": FORMAT,
        "version": VERSION,
        "kdf": {"name": "argon2id", "salt": _text(salt), "ops": ops, "memory_kib": memory_kib},
        "sealed": _text(bytes(box.encrypt(inside.encode()))),
    }
    return json.dumps(content, indent=1) + "\n"


def import_keys(data_dir: Path, text: str, password: str) -> Imported:
    """Write the keys of a sealed file into a data directory, all of them or none. InvalidError when the file cannot
    be opened, SettingsError when the directory has other keys.
    """
    files = _open(text, password)
    same = [name for name, content in files.items() if _is_there(data_dir / name, content)]
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    written = []
    for name, content in files.items():
        if name not in same:
            _write_new(data_dir / name, content)
            written.append(name)
    return Imported(written=tuple(written), same=tuple(same))


def _is_there(path: Path, content: bytes) -> bool:
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return False
    if found != content:
        raise SettingsError(
            f"{path} is another key than the one in the file, and nothing was changed: what it opens would be lost. "
            "Import into the data directory of a server that was never started, or move that one aside"
        )
    return True


def _write_new(path: Path, content: bytes) -> None:
    """For its owner only. Complete when it has its name, and never in the place of another."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(new)
        except FileExistsError:
            raise SettingsError(
                f"{path} was made by another process meanwhile: end the server on {path.parent}, then import again"
            ) from None
    finally:
        new.unlink()


def _open(text: str, password: str) -> dict[str, bytes]:
    try:
        outer = json.loads(text)
        known = outer["format"] == FORMAT
        version, kdf = outer["version"], outer["kdf"]
        salt, ops, memory_kib = _bytes(kdf["salt"]), int(kdf["ops"]), int(kdf["memory_kib"])
        sealed = _bytes(outer["sealed"])
    except (ValueError, TypeError, KeyError):
        known, version, salt, ops, memory_kib, sealed = False, 0, b"", 0, 0, b""
    if not known or len(salt) != _SALT_BYTES:
        raise InvalidError("this is no file of `vmhaul keys export`, or it is damaged")
    if version != VERSION:
        raise InvalidError(
            f"the file has version {version}, which this release does not know; import it with the release that wrote it"
        )
    if not (1 <= ops <= _MOST_OPS and _LEAST_MEMORY_KIB <= memory_kib <= _MOST_MEMORY_KIB):
        raise InvalidError(
            f"the file asks for {ops} passes over {memory_kib} KiB, which no export does; it is damaged"
        )
    try:
        inside = json.loads(SecretBox(_derive(password, salt, ops, memory_kib)).decrypt(sealed))
    except CryptoError:
        raise InvalidError(
            "the password is not the one with which the file was sealed, or the file is damaged"
        ) from None
    files = {str(name): _bytes(content) for name, content in inside.items()}
    _check(files)
    return files


def _check(files: Mapping[str, bytes]) -> None:
    """SettingsError unless these are keys with which a server could start."""
    unknown = set(files) - {*KEY_FILES, *AUTHORITY_FILES}
    if unknown or not set(KEY_FILES) <= set(files):
        raise SettingsError("the keys are not those of a server: export them anew with this release")
    wrong = [name for name in KEY_FILES if len(files[name]) != KEY_BYTES]
    if wrong:
        raise SettingsError(f"{wrong[0]} is damaged: put the right file back, then export again")
    authority = [files[name] for name in AUTHORITY_FILES if name in files]
    if not authority:
        return
    try:
        key_pem, certificate_pem = authority
        key = serialization.load_pem_private_key(key_pem, None)
        belong = key.public_key() == x509.load_pem_x509_certificate(certificate_pem).public_key()
    except ValueError:
        belong = False
    if not belong:
        raise SettingsError(
            "ca.key and ca.pem in tls/ are damaged or do not belong together: put the right pair back, then export again"
        )


def _derive(password: str, salt: bytes, ops: int, memory_kib: int) -> bytes:
    try:
        return argon2id.kdf(
            SecretBox.KEY_SIZE, password.encode(), salt, opslimit=ops, memlimit=memory_kib * 1024
        )
    except (CryptoError, MemoryError) as error:
        raise InvalidError(
            f"deriving the key from the password needs {memory_kib} KiB of memory, which this machine did not give; "
            "free memory and try again"
        ) from error


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _bytes(text: Any) -> bytes:
    return base64.b64decode(text, validate=True)
