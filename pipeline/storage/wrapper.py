"""What storages are wrapped and made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.storage.base import Buffer, ObjectWriter, Retention, Space, Storage, StoredObject


class StorageWrapper:
    """Hands every call on; for wrappers that change one thing."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner

    @property
    def location(self) -> str:
        return self.inner.location

    @property
    def retention(self) -> Retention | None:
        return self.inner.retention

    def create(self, name: str) -> ObjectWriter:
        return self.inner.create(name)

    def put(self, name: str, data: Buffer) -> None:
        self.inner.put(name, data)

    def replace(self, name: str, data: Buffer) -> None:
        self.inner.replace(name, data)

    def read(self, name: str) -> bytes:
        return self.inner.read(name)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        return self.inner.read_range(name, offset, length)

    def size_bytes(self, name: str) -> int:
        return self.inner.size_bytes(name)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        return self.inner.list(prefix)

    def delete(self, name: str) -> None:
        self.inner.delete(name)

    def clean(self, older_than_s: float) -> int:
        return self.inner.clean(older_than_s)

    def space(self) -> Space:
        return self.inner.space()

    def close(self) -> None:
        self.inner.close()


class WholeObjectWriter:
    """Gathers an object in memory and puts it when it is committed: for small ones."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._parts: list[bytes] = []

    def write(self, parts: Sequence[Buffer]) -> None:
        self._parts.extend(bytes(part) for part in parts)

    def commit(self) -> None:
        self._storage.put(self._name, b"".join(self._parts))

    def abort(self) -> None:
        self._parts.clear()
