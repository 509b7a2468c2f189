"""`vmhaul-repository.json`: what one must know of a repository before having a key."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pipeline.crypto.aead import AEAD_NAMES, Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import (
    IntegrityError,
    ObjectNotFoundError,
    RepositoryNotFoundError,
    UnsupportedFormatError,
    WrongRepositoryError,
)
from pipeline.model import RepositoryId
from pipeline.repository import layout
from pipeline.repository.canonical import from_canonical, to_canonical
from pipeline.repository.format import (
    FORMAT_NAME,
    FORMAT_VERSION,
    KNOWN_FEATURES,
    MAX_BLOCK_SIZE_BYTES,
    MIN_BLOCK_SIZE_BYTES,
)
from pipeline.storage.base import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    repository_id: RepositoryId
    block_size_bytes: int
    aead: Aead
    created_at_s: int
    signing_key: bytes
    """Public."""
    mac: bytes
    features: tuple[str, ...] = ()
    """Ascending."""

    @property
    def id_bytes(self) -> bytes:
        return UUID(self.repository_id).bytes


def checked_block_size(block_size_bytes: int) -> int:
    """Raises ValueError unless the format allows it."""
    if (
        block_size_bytes & (block_size_bytes - 1)
        or not MIN_BLOCK_SIZE_BYTES <= block_size_bytes <= MAX_BLOCK_SIZE_BYTES
    ):
        raise ValueError(
            f"block size {block_size_bytes} is not a power of two from {MIN_BLOCK_SIZE_BYTES} to "
            f"{MAX_BLOCK_SIZE_BYTES}"
        )
    return block_size_bytes


def make_configuration(
    keyring: Keyring,
    block_size_bytes: int,
    aead: Aead,
    created_at_s: int,
    features: Collection[str] = (),
) -> bytes:
    """The object's bytes."""
    fields: dict[str, Any] = {
        "aead": AEAD_NAMES[aead],
        "block_size_bytes": checked_block_size(block_size_bytes),
        "created_at": created_at_s,
        "features": sorted(features),
        "format": FORMAT_NAME,
        "id": str(UUID(bytes=keyring.repository_id)),
        "signing_key": keyring.public_key.hex(),
        "version": FORMAT_VERSION,
    }
    fields["mac"] = keyring.configuration_mac(to_canonical(fields)).hex()
    return to_canonical(fields) + b"\n"


def read_configuration(storage: Storage) -> Configuration:
    """Raises RepositoryNotFoundError, UnsupportedFormatError, IntegrityError."""
    where = f"{layout.CONFIGURATION} in {storage.location}"
    try:
        data = storage.read(layout.CONFIGURATION)
    except ObjectNotFoundError as error:
        raise RepositoryNotFoundError(
            f"no vmhaul repository in {storage.location}; is the right file system mounted there?"
        ) from error
    fields = from_canonical(data.removesuffix(b"\n"), where)
    version = fields.get("version")
    if fields.get("format") != FORMAT_NAME or not isinstance(version, int):
        raise IntegrityError(f"{where} does not describe a vmhaul repository")
    if version > FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"the repository in {storage.location} has format version {version}, and this vmhaul knows "
            f"{FORMAT_VERSION}; use a newer vmhaul"
        )
    features = fields.get("features")
    if not isinstance(features, list) or not all(isinstance(name, str) for name in features):
        raise IntegrityError(f"{where} is damaged: its features are no list of names")
    if unknown := sorted(set(features) - KNOWN_FEATURES):
        raise UnsupportedFormatError(
            f"the repository in {storage.location} uses {', '.join(unknown)}; use a newer vmhaul"
        )
    try:
        return _parsed(fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"{where} is damaged: {error!r}") from error


def _parsed(fields: dict[str, Any]) -> Configuration:
    algorithms = {name: number for number, name in AEAD_NAMES.items()}
    repository_id = str(UUID(fields["id"]))
    if repository_id != fields["id"] or len(fields) != 9:  # noqa: PLR2004 - the fields of version 1
        raise ValueError("fields of another version")
    return Configuration(
        repository_id=RepositoryId(repository_id),
        block_size_bytes=checked_block_size(fields["block_size_bytes"]),
        aead=algorithms[fields["aead"]],
        created_at_s=fields["created_at"],
        signing_key=bytes.fromhex(fields["signing_key"]),
        mac=bytes.fromhex(fields["mac"]),
        features=tuple(fields["features"]),
    )


def verify_configuration(storage: Storage, configuration: Configuration, keyring: Keyring) -> None:
    """The configuration is what was written with this master key. Raises WrongRepositoryError when the
    key is of another repository or somebody changed the configuration.
    """
    expected = make_configuration(
        keyring,
        configuration.block_size_bytes,
        configuration.aead,
        configuration.created_at_s,
        configuration.features,
    )
    if expected != storage.read(layout.CONFIGURATION):
        raise WrongRepositoryError(
            f"{layout.CONFIGURATION} in {storage.location} does not belong to this key: the key is of "
            "another repository, or the file was changed; bring it back from a copy"
        )
