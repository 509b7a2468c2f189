"""What every driver of a storage system must do. Subclass, give the fixtures, run pytest."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from transports.storage_systems.base import (
    Exposed,
    StorageSystem,
    Volume,
    VolumeKind,
    exposure_name,
    owner_prefix,
    snapshot_name,
)

SERVER = "6f1f4a53-8a0c-4b7e-9d53-0f3f0a6d1c11"
OTHER_SERVER = "0c9c2f5e-3f0e-4b8f-8e53-6a1d1c3f9a22"
INTENT = "11111111-2222-4333-8444-555555555555"
OTHER_INTENT = "99999999-2222-4333-8444-555555555555"
NAME = snapshot_name(SERVER, INTENT)
OTHER = snapshot_name(SERVER, OTHER_INTENT)
FOREIGN = snapshot_name(OTHER_SERVER, INTENT)
EXPOSURE = exposure_name(NAME, "task 1")
OURS = owner_prefix(SERVER)

Read = Callable[[Exposed], bytes]
Write = Callable[[Volume, bytes], None]


class StorageSystemContract:
    """Fixtures to give: `system`, with at least two volumes; `host`, a proxy that it knows; `write`, which changes
    what a volume holds; `read`, what a proxy finds of it in an exposed one.
    """

    @pytest.fixture
    def system(self) -> StorageSystem:
        raise pytest.UsageError("give the fixture `system`: a StorageSystem with two volumes")

    @pytest.fixture
    def host(self) -> str:
        raise pytest.UsageError("give the fixture `host`: what the system calls a proxy")

    @pytest.fixture
    def write(self) -> Write:
        raise pytest.UsageError("give the fixture `write`: (volume, bytes) -> None")

    @pytest.fixture
    def read(self) -> Read:
        raise pytest.UsageError("give the fixture `read`: exposed -> bytes")

    def test_tells_what_it_is(self, system: StorageSystem) -> None:
        assert system.describe().model

    def test_volumes_have_ids_of_their_own_and_a_place(self, system: StorageSystem) -> None:
        volumes = system.volumes()
        assert len(volumes) >= 2
        assert len({volume.id for volume in volumes}) == len(volumes)
        for volume in volumes:
            assert volume.size_bytes > 0
            if volume.kind is VolumeKind.LUN:
                assert volume.lun.startswith(("naa.", "eui.", "t10."))
            else:
                assert volume.exports

    def test_a_snapshot_keeps_what_was_there(
        self, system: StorageSystem, host: str, write: Write, read: Read
    ) -> None:
        volume = system.volumes()[0]
        write(volume, b"before")
        system.create_snapshot(NAME, [volume.id])
        write(volume, b"after!")
        [exposed] = system.expose(EXPOSURE, [volume.id], host)
        assert exposed.volume_id == volume.id
        assert read(exposed) == b"before"

    def test_volumes_are_frozen_together_and_found_again(self, system: StorageSystem) -> None:
        ids = tuple(sorted(volume.id for volume in system.volumes()[:2]))
        system.create_snapshot(NAME, ids)
        [found] = system.snapshots(OURS)
        assert (found.name, tuple(sorted(found.volume_ids))) == (NAME, ids)

    def test_repeating_changes_nothing(
        self, system: StorageSystem, host: str, write: Write, read: Read
    ) -> None:
        first, second = system.volumes()[:2]
        write(first, b"before")
        system.create_snapshot(NAME, [first.id])
        write(first, b"after!")
        # As after a call of which a part was done: the second volume is still to come.
        system.create_snapshot(NAME, [first.id, second.id])
        [exposed] = system.expose(EXPOSURE, [first.id], host)
        assert system.expose(EXPOSURE, [first.id], host) == (exposed,)
        assert read(exposed) == b"before"
        system.hide(EXPOSURE)
        system.hide(EXPOSURE)
        system.delete_snapshot(NAME)
        system.delete_snapshot(NAME)
        assert system.snapshots(OURS) == ()
        assert system.exposures(OURS) == ()

    def test_what_was_made_is_no_volume(self, system: StorageSystem, host: str) -> None:
        before = system.volumes()
        system.create_snapshot(NAME, [before[0].id])
        system.expose(EXPOSURE, [before[0].id], host)
        assert system.volumes() == before

    def test_only_the_named_one_goes(self, system: StorageSystem) -> None:
        volume = system.volumes()[0]
        for name in (NAME, OTHER, FOREIGN):
            system.create_snapshot(name, [volume.id])
        system.delete_snapshot(NAME)
        assert [one.name for one in system.snapshots(OURS)] == [OTHER]
        assert [one.name for one in system.snapshots("")] == sorted([OTHER, FOREIGN])

    def test_hiding_one_leaves_the_others(
        self, system: StorageSystem, host: str, write: Write, read: Read
    ) -> None:
        volume = system.volumes()[0]
        write(volume, b"before")
        system.create_snapshot(NAME, [volume.id])
        system.expose(EXPOSURE, [volume.id], host)
        [other] = system.expose(exposure_name(NAME, "task 2"), [volume.id], host)
        system.hide(EXPOSURE)
        assert read(other) == b"before"
        assert EXPOSURE not in system.exposures("")

    @pytest.mark.parametrize(
        "name",
        ["", "daily", "vmhaul-", f"{NAME}; reboot", f"../{NAME}", NAME.upper(), EXPOSURE, NAME + "\n"],
    )
    def test_a_snapshot_of_another_name_is_never_touched(
        self, system: StorageSystem, name: str
    ) -> None:
        with pytest.raises(ValueError, match="name"):
            system.create_snapshot(name, [system.volumes()[0].id])
        with pytest.raises(ValueError, match="name"):
            system.delete_snapshot(name)
        assert system.snapshots("") == ()

    @pytest.mark.parametrize("name", ["", "daily", NAME, f"{EXPOSURE}'", EXPOSURE + "0"])
    def test_an_exposure_of_another_name_is_never_touched(
        self, system: StorageSystem, host: str, name: str
    ) -> None:
        with pytest.raises(ValueError, match="name"):
            system.expose(name, [system.volumes()[0].id], host)
        with pytest.raises(ValueError, match="name"):
            system.hide(name)

    def test_closes_twice(self, system: StorageSystem) -> None:
        system.close()
        system.close()
