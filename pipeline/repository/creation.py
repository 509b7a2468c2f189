"""A new repository: its first key object and its configuration."""

from __future__ import annotations

from collections.abc import Collection
from uuid import uuid4

from pipeline.crypto.aead import Aead, fastest_algorithm
from pipeline.crypto.kdf import KdfCost, cost_of_this_machine
from pipeline.crypto.keyring import Keyring, new_master_key
from pipeline.crypto.unlock import by_password
from pipeline.errors import ObjectExistsError, ObjectNotFoundError, RepositoryExistsError
from pipeline.repository import layout
from pipeline.repository.configuration import checked_block_size, make_configuration
from pipeline.repository.format import FEATURE_EPOCHS
from pipeline.repository.keys import wrap_keyring, wrap_master_key
from pipeline.storage.base import Storage


def store_new_repository(
    storage: Storage,
    password: str,
    *,
    created_at_s: int,
    block_size_bytes: int,
    kdf_cost: KdfCost | None,
    aead: Aead | None,
    features: Collection[str],
) -> Keyring:
    """The keys of the new repository. See Repository.create()."""
    checked_block_size(block_size_bytes)
    if not password:
        raise ValueError("a repository needs a password that is not empty")
    repository_id = uuid4().bytes
    keyring = Keyring(new_master_key(), repository_id)
    cost = kdf_cost or cost_of_this_machine()
    key_id = layout.new_object_id()
    if FEATURE_EPOCHS in features:
        wrapped = wrap_keyring(
            keyring, by_password(password), key_id, label="", created_at_s=created_at_s, cost=cost
        )
    else:
        wrapped = wrap_master_key(keyring.master_key, password, repository_id, cost)
    configuration = make_configuration(
        keyring, block_size_bytes, aead or fastest_algorithm(), created_at_s, features
    )
    _refuse_existing(storage)
    key_name = layout.key_name(key_id)
    storage.put(key_name, wrapped)
    try:
        # The last write: from here on there is a repository.
        storage.put(layout.CONFIGURATION, configuration)
    except ObjectExistsError as error:
        storage.delete(key_name)
        raise _exists(storage) from error
    return keyring


def _refuse_existing(storage: Storage) -> None:
    try:
        storage.size_bytes(layout.CONFIGURATION)
    except ObjectNotFoundError:
        return
    raise _exists(storage)


def _exists(storage: Storage) -> RepositoryExistsError:
    return RepositoryExistsError(
        f"{storage.location} holds a repository already; open it (import) or choose another directory"
    )
