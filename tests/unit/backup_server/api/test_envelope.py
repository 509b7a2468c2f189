"""Whatever goes wrong, the answer has one shape."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from backup_server.services import jobs
from tests.support.asgi import AsgiClient


def error_of(response: httpx.Response) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "details"}
    assert body["error"]["message"]
    return dict(body["error"])


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", "Basic the-token-of-this-server"]
)
def test_without_the_token(stranger: AsgiClient, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    response = stranger.get("/jobs", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert error_of(response)["code"] == "unauthorized"


def test_health_and_metrics_need_no_token(stranger: AsgiClient) -> None:
    # There is no broker in this test, and health says so.
    response = stranger.get("/health")
    assert response.status_code == 503
    assert "broker" in response.json()["parts"]
    metrics = stranger.get("/metrics")
    assert metrics.status_code == 200
    assert 'vmhaul_proxy_online{proxy="default"} 0.0' in metrics.text


def test_a_route_that_does_not_exist(api: AsgiClient) -> None:
    response = api.get("/nonsense")
    assert response.status_code == 404
    assert "GET /api/v1/nonsense" in error_of(response)["message"]


def test_a_method_that_does_not_exist(api: AsgiClient) -> None:
    response = api.request("PUT", "/jobs")
    assert response.status_code == 404
    assert error_of(response)["code"] == "not-found"


def test_outside_of_the_version(stranger: AsgiClient) -> None:
    response = stranger.get("http://127.0.0.1/api/v2/jobs")
    assert response.status_code == 404
    assert error_of(response)["code"] == "not-found"


def test_an_object_that_does_not_exist(api: AsgiClient) -> None:
    response = api.get("/jobs/nightly")
    assert response.status_code == 404
    assert "nightly" in error_of(response)["message"]


def test_a_body_that_is_not_json(api: AsgiClient) -> None:
    response = api.post("/proxies", content=b"{", headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert error_of(response)["code"] == "bad-request"


def test_fields_that_are_wrong_are_named_and_not_shown(api: AsgiClient) -> None:
    body = {
        "name": "x",
        "host": "h",
        "username": "u",
        "password": ["hunter2"],
        "port": 0,
        "colour": "red",
    }
    response = api.post("/vcenters", json=body)
    assert response.status_code == 422
    error = error_of(response)
    assert error["code"] == "unprocessable"
    assert set(error["details"]) == {"password", "port", "colour", "thumbprint_sha256"}
    assert error["details"]["colour"] == "there is no such field"
    assert "hunter2" not in response.text


def test_a_service_that_refuses(api: AsgiClient) -> None:
    response = api.post("/proxies", json={"name": "a proxy"})
    assert response.status_code == 422
    assert "name" in error_of(response)["details"]
    assert api.post("/proxies", json={"name": "far"}).status_code == 200
    again = api.post("/proxies", json={"name": "far"})
    assert again.status_code == 409
    assert error_of(again)["code"] == "conflict"


def test_a_vcenter_that_does_not_answer(api: AsgiClient) -> None:
    response = api.post("/vcenters/probe", json={"host": "nobody"})
    assert response.status_code == 503
    assert error_of(response)["code"] == "unavailable"


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "cursor=x"])
def test_pages_that_cannot_be(api: AsgiClient, query: str) -> None:
    response = api.get(f"/jobs?{query}")
    assert response.status_code in {400, 422}
    assert error_of(response)["code"] in {"bad-request", "unprocessable"}


def test_an_error_of_the_server_tells_nothing_of_its_inside(
    api: AsgiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(ctx: object) -> list[Any]:
        raise ZeroDivisionError("secret inside")

    monkeypatch.setattr(jobs, "list_all", crash)
    with capture_logs() as lines:
        response = api.get("/jobs")
    assert [line["event"] for line in lines] == ["api.crash"]
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal"
    assert "secret inside" not in response.text
