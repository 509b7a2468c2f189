from __future__ import annotations

from typing import Any

import pytest

from backup_server.api import answers
from backup_server.services.context import Context
from tests.fakes.storage import IDENTITY, TOKEN, FakeArray
from tests.support.asgi import AsgiClient

NAA = "naa.624a93700000000000000001"


@pytest.fixture
def array(ctx: Context) -> FakeArray:
    array = FakeArray()
    array.lun("vol1", NAA)
    ctx.storage.drivers = {"fake": array.driver()}
    return array


def body(**changes: Any) -> dict[str, Any]:
    return {
        "name": "array1",
        "driver": "fake",
        "address": "array1.test",
        "identity": IDENTITY,
        "secrets": {"token": TOKEN},
        "proxies": [{"proxy": "default", "host": "proxy1-host"}],
        **changes,
    }


def test_what_each_driver_is_told(api: AsgiClient, array: FakeArray) -> None:
    found = api.get("/storage-drivers").json()
    answers.StorageDrivers.model_validate(found)
    [driver] = found["drivers"]
    assert [option["name"] for option in driver["options"]] == ["paths", "kind"]


def test_the_drivers_of_the_release(api: AsgiClient) -> None:
    names = [driver["name"] for driver in api.get("/storage-drivers").json()["drivers"]]
    assert "flasharray" in names


def test_identity_is_shown_before_a_secret_is_sent(api: AsgiClient, array: FakeArray) -> None:
    shown = api.post("/storage-systems/probe", json={"driver": "fake", "address": "array1.test"})
    answers.StorageProbe.model_validate(shown.json())
    assert shown.json()["identity"] == IDENTITY
    assert array.calls == []
    away = api.post("/storage-systems/probe", json={"driver": "fake", "address": "nowhere"})
    assert away.status_code == 503
    none = api.post("/storage-systems/probe", json={"driver": "netapp", "address": "x"})
    assert none.status_code == 422


def test_a_system_from_its_adding_to_its_removal(api: AsgiClient, array: FakeArray) -> None:
    added = api.post("/storage-systems", json=body())
    assert added.status_code == 200, added.text
    answers.StorageSystem.model_validate(added.json())
    assert added.json()["model"] == "Fake array"
    assert [volume["lun"] for volume in added.json()["volumes"]] == [NAA]
    listed = api.get("/storage-systems").json()
    answers.Page[answers.StorageSystem].model_validate(listed)
    for path in ("/storage-systems", "/storage-systems/array1"):
        assert TOKEN not in api.get(path).text
    array.lun("vol2", NAA[:-1] + "2")
    again = api.post("/storage-systems/array1/rescan", json={}).json()
    assert len(again["volumes"]) == 2
    changed = api.patch("/storage-systems/array1", json={"name": "first", "options": {"kind": "b"}})
    assert (changed.json()["name"], changed.json()["options"]["kind"]) == ("first", "b")
    assert api.delete("/storage-systems/first").status_code == 204
    assert api.get("/storage-systems/first").status_code == 404


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"driver": "netapp"}, "driver"),
        ({"identity": "another"}, "identity"),
        ({"secrets": {"token": "wrong-secret"}}, "secrets"),
        ({"secrets": {}}, "secrets"),
        ({"secrets": {"token": TOKEN, "user": "x"}}, "secrets"),
        ({"options": {"colour": "red"}}, "options"),
        ({"options": {"kind": "c"}}, "options"),
        ({"options": {"kind": ["a", "b"]}}, "options"),
        ({"proxies": [{"proxy": "nobody", "host": "h"}]}, "proxies"),
        ({"proxies": [{"proxy": "default"}]}, "proxies"),
        ({"proxies": [{"proxy": "default", "host": "h"}] * 2}, "proxies"),
        ({"name": "a/b"}, "name"),
    ],
)
def test_what_cannot_be_accepted_is_named_and_no_secret_repeated(
    api: AsgiClient, array: FakeArray, changes: dict[str, Any], field: str
) -> None:
    refused = api.post("/storage-systems", json=body(**changes))
    assert refused.status_code == 422, refused.text
    assert field in refused.json()["error"]["details"]
    assert "wrong-secret" not in refused.text
    assert api.get("/storage-systems").json()["items"] == []


def test_names_are_single(api: AsgiClient, array: FakeArray) -> None:
    api.post("/storage-systems", json=body())
    assert api.post("/storage-systems", json=body()).status_code == 409


def test_a_secret_that_is_not_named_stays(api: AsgiClient, array: FakeArray) -> None:
    api.post("/storage-systems", json=body())
    array.token = "new-token"
    refused = api.patch("/storage-systems/array1", json={"address": "array2.test"})
    assert refused.status_code == 422
    good = api.patch("/storage-systems/array1", json={"secrets": {"token": "new-token"}})
    assert good.status_code == 200, good.text
    assert good.json()["problem"] == ""
    assert api.patch("/storage-systems/array1", json={"driver": "x"}).status_code == 422
