"""Storage systems as the backups see them: volumes tied to datastores, troubles kept."""

from __future__ import annotations

import pytest

from backup_server.db.tables import Credential
from backup_server.errors import ConflictError, UnavailableError
from backup_server.services import jobs, storage_systems, vcenters
from tests.fakes.server import Rig
from tests.fakes.storage import TOKEN
from tests.support.storage_rig import LUN1, LUN2, begin, nfs, vmfs, with_array
from transports.errors import TransientTransportError


@pytest.fixture
def storage(rig: Rig) -> Rig:
    return with_array(rig)


def datastores(rig: Rig) -> dict[str, list[str]]:
    shown = storage_systems.get(rig.ctx, "array1")
    return {
        volume["name"]: [f"{store['vcenter']}/{store['name']}" for store in volume["datastores"]]
        for volume in shown["volumes"]
    }


def test_volumes_know_their_datastores(storage: Rig) -> None:
    assert datastores(storage) == {"vol1": ["vc1/ds1"], "vol2": ["vc1/ds2"]}
    storage.vcenter.storage["ds1"] = vmfs("ds1", LUN1, LUN2)
    vcenters.inventory(storage.ctx, "vc1", refresh=True)
    storage_systems.rescan(storage.ctx, "array1")
    assert datastores(storage) == {"vol1": ["vc1/ds1"], "vol2": ["vc1/ds1", "vc1/ds2"]}
    storage.array.export("/tank/a")
    storage.vcenter.storage["ds2"] = nfs("ds2", "/tank/a/b")
    vcenters.inventory(storage.ctx, "vc1", refresh=True)
    storage_systems.rescan(storage.ctx, "array1")
    assert datastores(storage)["/tank/a"] == ["vc1/ds2"]


def test_a_rescan_that_fails_keeps_what_was_known(storage: Rig) -> None:
    storage.array.fail("volumes", TransientTransportError("away"))
    shown = storage_systems.rescan(storage.ctx, "array1")
    assert shown["problem"] == "away"
    assert len(shown["volumes"]) == 2
    storage.janitor.sweep()
    assert storage_systems.get(storage.ctx, "array1")["problem"] == ""


def test_the_secret_is_sealed_and_goes_with_the_system(storage: Rig) -> None:
    [row] = storage.rows(Credential, kind="storage-system")
    assert TOKEN.encode() not in row.sealed
    storage_systems.remove(storage.ctx, "array1")
    assert storage.rows(Credential, kind="storage-system") == []
    assert storage.array.closed > 0


def test_a_system_that_a_job_uses_stays(storage: Rig) -> None:
    storage.vcenter.add_vm("db01", disks=1)
    storage.job(storage_snapshots=True)
    with pytest.raises(ConflictError, match="job1"):
        storage_systems.remove(storage.ctx, "array1")
    jobs.edit(storage.ctx, "job1", {"storage_snapshots": False})
    storage_systems.remove(storage.ctx, "array1")


def test_an_edit_keeps_what_it_does_not_name(storage: Rig) -> None:
    before = storage_systems.get(storage.ctx, "array1")
    after = storage_systems.edit(storage.ctx, "array1", {"enabled": False})
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"enabled", "rescanned_at"}
    assert not after["enabled"]


def test_one_that_is_away_can_be_switched_off(storage: Rig) -> None:
    storage.array.fail("describe", TransientTransportError("away"))
    storage.array.fail("volumes", TransientTransportError("away"))
    after = storage_systems.edit(storage.ctx, "array1", {"enabled": False})
    assert (after["enabled"], after["problem"]) == (False, "away")
    with pytest.raises(UnavailableError, match="away"):
        storage_systems.edit(storage.ctx, "array1", {"address": "array1.elsewhere.test"})


def test_a_system_with_snapshots_becomes_no_other_one(storage: Rig) -> None:
    storage.vcenter.add_vm("db01", disks=1)
    storage.job(storage_snapshots=True)
    begin(storage)
    [name] = storage.array.frozen
    storage.array.identity = "another"
    with pytest.raises(ConflictError, match=f"still has snapshots of vmhaul .{name}.*another system"):
        storage_systems.edit(storage.ctx, "array1", {"address": "array2.test", "identity": "another"})
    # The same system with a new certificate, or reached in another way, is still that one.
    storage_systems.edit(storage.ctx, "array1", {"identity": "another"})
    after = storage_systems.edit(storage.ctx, "array1", {"address": "array1.elsewhere.test"})
    assert (after["address"], after["identity"]) == ("array1.elsewhere.test", "another")
