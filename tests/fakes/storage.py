"""A storage system in memory, behind the same declaration as the real drivers.

Any call can be told to fail or to be the last of its process. It remembers what was on it when it was frozen: which
VM snapshots existed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.fakes.crash import CrashPlan
from transports.errors import PeerIdentityError, PermanentTransportError, TransientTransportError
from transports.storage_systems.base import (
    Exposed,
    Option,
    StorageAccess,
    StorageDriver,
    StorageSnapshot,
    StorageSystem,
    SystemInfo,
    Volume,
    VolumeKind,
    checked_snapshot,
    snapshot_of,
)

TOKEN = "sesame-token"
IDENTITY = "fingerprint of the array"


class FakeArray:
    """The system's state, shared by all clients."""

    def __init__(self, plan: CrashPlan | None = None) -> None:
        self.plan = plan
        self.all: list[Volume] = []
        self.frozen: dict[str, dict[str, object]] = {}
        """Name -> volume -> what `content` said when it was frozen."""
        self.shown: dict[str, tuple[tuple[str, ...], str]] = {}
        """Exposure -> volumes and host."""
        self.destroyed: set[str] = set()
        """Exposures that are hidden and not eradicated."""
        self.content: Callable[[str], object] = lambda volume: None
        self.calls: list[str] = []
        self.scripted: dict[str, list[Exception]] = {}
        self.token = TOKEN
        self.identity = IDENTITY
        self.closed = 0

    def lun(self, name: str, naa: str) -> Volume:
        volume = Volume(id=name, name=name, kind=VolumeKind.LUN, size_bytes=1 << 40, lun=naa)
        self.all.append(volume)
        return volume

    def export(self, path: str, host: str = "filer1") -> Volume:
        volume = Volume(
            id=path, name=path, kind=VolumeKind.NFS, size_bytes=1 << 40, exports=(path,), hosts=(host,)
        )
        self.all.append(volume)
        return volume

    def fail(self, call: str, *errors: Exception) -> None:
        self.scripted.setdefault(call, []).extend(errors)

    def enter(self, call: str) -> None:
        if self.plan is not None:
            self.plan.point(f"before {call}")
        self.calls.append(call)
        waiting = self.scripted.get(call)
        if waiting:
            raise waiting.pop(0)

    def leave(self, call: str) -> None:
        if self.plan is not None:
            self.plan.point(f"after {call}")

    def driver(self, name: str = "fake", *, needs_host: bool = True) -> StorageDriver:
        return StorageDriver(
            name=name,
            title="Fake array",
            options=(
                Option(name="paths", help="What to look at.", many=True),
                Option(name="kind", help="Which kind.", choices=("a", "b"), default="a"),
            ),
            secrets=(("token",), ("password", "user")),
            needs_host=needs_host,
            probe=self._probe,
            connect=self._connect,
        )

    def _probe(self, address: str) -> str:
        if address == "nowhere":
            raise TransientTransportError("nowhere does not answer")
        return self.identity

    def _connect(self, access: StorageAccess) -> StorageSystem:
        return FakeStorageSystem(self, access)


class FakeStorageSystem:
    """One client."""

    def __init__(self, array: FakeArray, access: StorageAccess) -> None:
        self.array = array
        self.access = access

    def _enter(self, call: str) -> None:
        self.array.enter(call)
        if self.access.identity != self.array.identity:
            raise PeerIdentityError("the array shows another fingerprint than the confirmed one")
        if self.access.secrets["token"].reveal() != self.array.token:
            raise PermanentTransportError("the array refused the token")

    def describe(self) -> SystemInfo:
        self._enter("describe")
        return SystemInfo(model="Fake array", version="1.0")

    def volumes(self) -> tuple[Volume, ...]:
        self._enter("volumes")
        return tuple(self.array.all)

    def create_snapshot(self, name: str, volume_ids: Sequence[str]) -> None:
        checked_snapshot(name)
        self._enter("create_snapshot")
        held = self.array.frozen.setdefault(name, {})
        for volume in volume_ids:
            held.setdefault(volume, self.array.content(volume))
        self.array.leave("create_snapshot")

    def snapshots(self, prefix: str) -> tuple[StorageSnapshot, ...]:
        self._enter("snapshots")
        return tuple(
            StorageSnapshot(name=name, volume_ids=tuple(held))
            for name, held in self.array.frozen.items()
            if name.startswith(prefix)
        )

    def delete_snapshot(self, name: str) -> None:
        checked_snapshot(name)
        self._enter("delete_snapshot")
        if any(snapshot_of(exposure) == name for exposure in self.array.shown):
            raise PermanentTransportError(f"{name} has clones")
        self.array.frozen.pop(name, None)
        self.array.leave("delete_snapshot")

    def expose(self, exposure: str, volume_ids: Sequence[str], host: str) -> tuple[Exposed, ...]:
        name = snapshot_of(exposure)
        self._enter("expose")
        if not set(volume_ids) <= set(self.array.frozen.get(name, {})):
            raise PermanentTransportError(f"{name} does not exist")
        self.array.shown[exposure] = (tuple(volume_ids), host)
        self.array.leave("expose")
        by_id = {volume.id: volume for volume in self.array.all}
        return tuple(
            Exposed(volume_id=one, lun=f"naa.clone.{exposure[-8:]}")
            if by_id[one].kind is VolumeKind.LUN
            else Exposed(volume_id=one, directory=f".snap/{name}")
            for one in volume_ids
        )

    def exposures(self, prefix: str) -> tuple[str, ...]:
        self._enter("exposures")
        return tuple(name for name in self.array.shown if name.startswith(prefix))

    def hide(self, exposure: str) -> None:
        """As arrays do it that eradicate: what is destroyed is no exposure any more, and still takes space."""
        snapshot_of(exposure)
        self._enter("hide")
        if exposure in self.array.shown:
            self.array.destroyed.add(exposure)
            del self.array.shown[exposure]
        if exposure in self.array.destroyed:
            self._enter("eradicate")
            self.array.destroyed.discard(exposure)
        self.array.leave("hide")

    def close(self) -> None:
        self.array.closed += 1
