"""vCenters as the doors use them."""

from __future__ import annotations

from typing import Any

import pytest

from backup_server.db.tables import Credential, Session
from backup_server.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from backup_server.services import (
    jobs,
    vcenters,
)
from tests.fakes.server import Rig
from tests.fakes.vsphere import PASSWORD, THUMBPRINT
from transports.errors import TransientTransportError
from transports.vsphere.model import Secret


def add_vcenter(rig: Rig, **values: Any) -> dict[str, Any]:
    return vcenters.add(
        rig.ctx,
        **{
            "name": "vc2",
            "host": "vc2.test",
            "username": "backup",
            "password": Secret(PASSWORD),
            "thumbprint_sha256": THUMBPRINT,
            **values,
        },
    )


def test_vcenter_is_checked_before_it_is_stored(rig: Rig) -> None:
    for values, field in (
        ({"password": Secret("wrong")}, "password"),
        ({"thumbprint_sha256": "00" * 32}, "thumbprint_sha256"),
        ({"thumbprint_sha256": "abc"}, "thumbprint"),
        ({"host": " "}, "host"),
        ({"port": 0}, "port"),
    ):
        with pytest.raises(InvalidError) as caught:
            add_vcenter(rig, **values)
        assert field in caught.value.details
    with pytest.raises(UnavailableError):
        add_vcenter(rig, host="nowhere")
    assert [row["name"] for row in vcenters.list_all(rig.ctx)] == ["vc1"]
    assert len(rig.rows(Credential, kind="vcenter")) == 1


def test_vcenter_names_are_single(rig: Rig) -> None:
    with pytest.raises(ConflictError):
        add_vcenter(rig, name="vc1")
    rig.vcenter.instance_uuid = "another"
    add_vcenter(rig)
    with pytest.raises(ConflictError):
        vcenters.edit(rig.ctx, "vc2", {"name": "vc1"})
    with pytest.raises(NotFoundError, match="vc1, vc2"):
        vcenters.get(rig.ctx, "vc3")


def test_one_vcenter_is_not_registered_under_two_names(rig: Rig) -> None:
    with pytest.raises(ConflictError, match="registered already as 'vc1'") as caught:
        add_vcenter(rig)
    assert caught.value.details == {"vcenter": "vc1"}
    assert [row["name"] for row in vcenters.list_all(rig.ctx)] == ["vc1"]
    assert len(rig.rows(Credential, kind="vcenter")) == 1


def test_vcenter_edit_checks_the_login(rig: Rig) -> None:
    rig.vcenter.password = "new"
    with pytest.raises(InvalidError):
        vcenters.edit(rig.ctx, "vc1", {"username": "other"})
    shown = vcenters.edit(rig.ctx, "vc1", {"username": "other", "password": Secret("new")})
    assert shown["username"] == "other"
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    with pytest.raises(InvalidError, match="no such field"):
        vcenters.edit(rig.ctx, "vc1", {"colour": "red"})


def test_vcenter_edit_refuses_another_server(rig: Rig) -> None:
    rig.vcenter.instance_uuid = "somebody else"
    with pytest.raises(InvalidError, match="another vCenter"):
        vcenters.edit(rig.ctx, "vc1", {"host": "vc9.test"})


def test_vcenter_remove(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    with pytest.raises(ConflictError, match="job1"):
        vcenters.remove(rig.ctx, "vc1")
    rig.run()
    jobs.remove(rig.ctx, "job1")
    vcenters.remove(rig.ctx, "vc1")
    assert vcenters.list_all(rig.ctx) == []
    assert rig.rows(Credential, kind="vcenter") == []
    # History stays.
    assert len(rig.rows(Session)) == 1
    assert len(rig.points()) == 1


def test_inventory_cache(rig: Rig) -> None:
    rig.vcenter.add_vm("db01")
    first = vcenters.inventory(rig.ctx, "vc1")
    assert [vm["name"] for vm in first["vms"]] == ["db01"]
    rig.vcenter.add_vm("db02")
    assert len(vcenters.inventory(rig.ctx, "vc1")["vms"]) == 1
    assert len(vcenters.inventory(rig.ctx, "vc1", refresh=True)["vms"]) == 2
    rig.vcenter.add_vm("db03")
    rig.clock.advance(rig.settings.inventory_max_age_s + 1)
    assert len(vcenters.inventory(rig.ctx, "vc1")["vms"]) == 3
    rig.vcenter.fail("inventory", TransientTransportError("away"))
    with pytest.raises(UnavailableError):
        vcenters.inventory(rig.ctx, "vc1", refresh=True)


def test_probe(rig: Rig) -> None:
    assert vcenters.probe(rig.ctx, "vc1.test", 443)["thumbprint_sha256"] == THUMBPRINT
    with pytest.raises(UnavailableError):
        vcenters.probe(rig.ctx, "nowhere", 443)


def test_one_client_for_each_vcenter(rig: Rig) -> None:
    vcenter_id = vcenters.get(rig.ctx, "vc1")["id"]
    client = rig.ctx.vcenters.get(vcenter_id)
    assert rig.ctx.vcenters.get(vcenter_id) is client
    vcenters.edit(rig.ctx, "vc1", {"name": "renamed"})
    assert rig.ctx.vcenters.get(vcenter_id) is not client
    assert client.closed  # type: ignore[attr-defined]
