"""Proxies that say which VM they are: what is believed, and what a proxy that lies is not given."""

from __future__ import annotations

from typing import Any

import pytest
from nacl.signing import SigningKey

from backup_server.db.tables import Event, Intent, Proxy
from backup_server.errors import ConflictError, UnauthorizedError
from backup_server.main import create_app
from backup_server.scheduler.applying import ReportWriter
from backup_server.services import jobs, proxies, proxy_facts, vcenters
from backup_server.services.proxy_door import ProxyDoor
from proxy_worker.contracts.envelope import SERVER, Sealer
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.messages import ConnectionsReport, DatastoresRequest
from tests.fakes.hotadd import PROXY, UUID, add_proxy, foreign, hand_out, present
from tests.fakes.server import Rig
from tests.fakes.vsphere import FakeVm
from tests.integration.server.test_attachments import tasks
from tests.support.asgi import asgi_client
from transports.base import TransportMode
from transports.vsphere.model import Secret

OTHER_UUID = "42209f1e-0c2d-4b3a-8f10-000000000001"
GUEST, ELSEWHERE = "192.0.2.31", "192.0.2.66"
KEY = SigningKey(b"k" * 32)


@pytest.fixture
def victim(rig: Rig) -> FakeVm:
    """A VM that is no proxy of ours, and a remote proxy that has not said anything yet."""
    vm = add_proxy(rig, uuid="", confirmed=False)
    vm.bios_uuid, vm.guest_addresses = UUID, ("fe80::1", GUEST)
    with rig.ctx.db() as s:
        row = s.get_one(Proxy, PROXY)
        row.signing_key = bytes(KEY.verify_key).hex()
        row.last_seen_at = rig.clock.now
        row.facts = {"modes": [TransportMode.HOTADD.value], "slots": 4}
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    return vm


def says(rig: Rig, uuid: str, *addresses: str) -> None:
    report = ConnectionsReport(
        proxy_id=ProxyId(PROXY), vm_uuid=uuid, addresses=addresses, connections=(), missing=()
    )
    with rig.ctx.db() as s:
        ReportWriter._apply_connections(s, PROXY, report, rig.clock.now)


def calls_from(rig: Rig, address: str, key: SigningKey = KEY) -> None:
    door = ProxyDoor(rig.ctx)
    sealer = Sealer(PROXY, key, rig.clock.now.timestamp)
    question = DatastoresRequest(proxy_id=ProxyId(PROXY))
    assert door.answer(sealer.seal(question, to=SERVER), DatastoresRequest, address)


def confirmed(rig: Rig) -> str | None:
    return proxies.get(rig.ctx, PROXY)["vm_confirmed"]


def machine(rig: Rig) -> Any:
    with rig.ctx.db.read() as s:
        found = proxy_facts.proxy_facts(s, rig.clock.now, 20, {})
    return next(one.machine for one in found if one.id == PROXY)


def test_a_proxy_that_lies_has_no_disk_attached_to_the_vm(rig: Rig, victim: FakeVm) -> None:
    says(rig, UUID, f"{GUEST}/24")
    calls_from(rig, ELSEWHERE)
    assert machine(rig).vms[0].moref == victim.moref
    assert machine(rig).confirmed == frozenset()
    [task] = tasks(rig)
    [plan] = [disk["placement"] for vm in jobs.plan(rig.ctx, "job1")["vms"] for disk in vm["disks"]]
    refused = {one["mode"]: one["reason"] for one in plan["better"]}
    assert "only the proxy itself says that it is VM proxy-1" in refused["hotadd"]
    # It asks all the same, for an attempt that it holds.
    attempt = hand_out(rig, task)
    with pytest.raises(ConflictError, match="only proxy proxy-1 itself says"):
        present(rig, task, attempt)
    assert foreign(victim) == {}
    assert rig.rows(Intent, kind="hot-added-disk") == []


def test_the_address_of_its_calls_tells_which_vm_it_is(rig: Rig, victim: FakeVm) -> None:
    says(rig, UUID)
    for address in ("127.0.0.1", "fe80::1", ELSEWHERE, ""):
        calls_from(rig, address)
        assert confirmed(rig) is None
    with pytest.raises(UnauthorizedError):
        calls_from(rig, GUEST, SigningKey(b"x" * 32))
    assert confirmed(rig) is None
    calls_from(rig, GUEST)
    assert confirmed(rig) == "address"
    assert {moref for _, moref in machine(rig).confirmed} == {victim.moref}
    # Tools may stop; what was once seen stays, until it shows another UUID.
    victim.guest_addresses = ()
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    assert confirmed(rig) == "address"
    [task] = tasks(rig)
    assert present(rig, task, hand_out(rig, task)).mode is TransportMode.HOTADD
    says(rig, OTHER_UUID)
    assert confirmed(rig) is None
    says(rig, UUID)
    assert confirmed(rig) is None


def test_the_inventory_may_tell_the_address_later(rig: Rig, victim: FakeVm) -> None:
    victim.guest_addresses = ()
    calls_from(rig, GUEST)
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    says(rig, UUID)
    assert confirmed(rig) is None
    victim.guest_addresses = (GUEST,)
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    assert confirmed(rig) == "address"


def test_one_of_several_vms_with_the_uuid_is_confirmed_by_nobodys_address(
    rig: Rig, victim: FakeVm
) -> None:
    rig.vcenter.add_vm("copy", 1, bios_uuid=UUID)
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    says(rig, UUID)
    calls_from(rig, GUEST)
    assert victim.guest_addresses
    assert confirmed(rig) is None


def test_an_administrator_confirms_what_was_shown(rig: Rig, victim: FakeVm) -> None:
    with asgi_client(create_app(rig.ctx, Secret("t")), "http://127.0.0.1") as client:
        bearer = {"Authorization": "Bearer t"}

        def confirm(uuid: str) -> Any:
            path = f"/api/v1/proxies/{PROXY}/confirm-vm"
            return client.post(path, json={"vm_uuid": uuid}, headers=bearer)

        assert "shows no SMBIOS UUID" in confirm(UUID).text
        says(rig, OTHER_UUID)
        assert "no registered vCenter has a VM" in confirm(OTHER_UUID).text
        says(rig, UUID)
        refused = confirm(OTHER_UUID)
        assert refused.status_code == 409
        assert f"shows the SMBIOS UUID {UUID}, not {OTHER_UUID}" in refused.text
        assert confirmed(rig) is None
        answer = confirm(UUID).json()
        assert answer["vm_confirmed"] == "administrator"
        assert answer["discovery"]["vms"][0]["name"] == victim.name
    assert "proxy.vm-confirmed" in {event.name for event in rig.rows(Event)}
    [task] = tasks(rig)
    assert present(rig, task, hand_out(rig, task)).mode is TransportMode.HOTADD


def test_keys_that_are_made_anew_are_another_machine(rig: Rig, victim: FakeVm) -> None:
    says(rig, UUID)
    proxies.confirm_vm(rig.ctx, PROXY, UUID.upper())
    assert confirmed(rig) == "administrator"
    assert victim.name
    proxies.new_token(rig.ctx, PROXY)
    assert confirmed(rig) is None


def test_proxies_on_the_servers_machine_need_no_confirmation(rig: Rig) -> None:
    assert proxies.get(rig.ctx, "default")["vm_confirmed"] == "local"


def test_tracking_stays_off_for_a_vm_that_is_a_proxy(rig: Rig, victim: FakeVm) -> None:
    def back_up() -> str:
        rig.drive(str(jobs.run(rig.ctx, "own")["id"]))
        return " ".join(event.text for event in rig.rows(Event) if "tracking" in event.name)

    rig.job(name="own", selection={"include": [{"type": "vm", "name": victim.name}]})
    says(rig, UUID)
    proxies.confirm_vm(rig.ctx, PROXY, UUID)
    assert "change tracking stays off: the VM is a proxy" in back_up()
    assert not victim.tracking
    proxies.new_token(rig.ctx, PROXY)
    back_up()
    assert victim.tracking
