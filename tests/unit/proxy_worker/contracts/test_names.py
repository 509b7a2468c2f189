from __future__ import annotations

import ssl

import kombu
import pytest
import redis

from proxy_worker.contracts.ids import Attempt, ProxyId, TaskId
from proxy_worker.contracts.names import (
    celery_socket_url,
    down_stream,
    message_id,
    redis_client_url,
    task_queue,
    up_stream,
    with_tls_verified,
)


@pytest.mark.parametrize(
    ("celery", "client"),
    [
        ("redis+socket:///run/b.sock", "unix:///run/b.sock"),
        ("redis+socket:///a%20b/b.sock?virtual_host=3", "unix:///a%20b/b.sock?db=3"),
        ("redis://h:6379/1", "redis://h:6379/1"),
        ("rediss://u:p@h/0", "rediss://u:p@h/0"),
    ],
)
def test_the_same_broker_for_both_libraries(celery: str, client: str) -> None:
    assert redis_client_url(celery) == client


@pytest.mark.parametrize(
    "url",
    [
        "rediss://u:p@h:6379/0",
        "rediss://u:p@[::1]:6379/0?",
        "rediss://u:p@h/0?ssl_ca_certs=%2Fa%20b.pem",
        "rediss://u:p@h/0?ssl_cert_reqs=",
        "rediss://u:p@h/0?ssl_cert_reqs=required&ssl_check_hostname=false",
    ],
)
def test_celery_looks_at_the_brokers_certificate(url: str) -> None:
    with kombu.Connection(with_tls_verified(url)) as celery:
        assert celery.ssl["ssl_cert_reqs"] == ssl.CERT_REQUIRED
        known_by = {name: value for name, value in celery.ssl.items() if name != "ssl_cert_reqs"}
    with kombu.Connection(url) as celery:
        assert known_by.items() <= celery.ssl.items()
    with redis.Redis.from_url(with_tls_verified(url)) as client:
        assert client.connection_pool.connection_kwargs["ssl_cert_reqs"] == "required"


@pytest.mark.parametrize(
    "url", ["redis://h/0", "redis+socket://u:p@/run/b.sock", "rediss://h/0?ssl_cert_reqs=none"]
)
def test_what_a_person_decided_stays(url: str) -> None:
    assert with_tls_verified(url) == url


def test_a_path_with_odd_characters_arrives() -> None:
    url = redis_client_url(celery_socket_url("/tmp/a b%c/b.sock"))
    with redis.Redis.from_url(url) as made:
        assert made.connection_pool.connection_kwargs["path"] == "/tmp/a b%c/b.sock"


def test_names() -> None:
    proxy = ProxyId("p1")
    assert task_queue(proxy) == "vmhaul.px.p1"
    assert (up_stream(proxy), down_stream(proxy)) == ("vmhaul:up:p1", "vmhaul:down:p1")
    assert message_id(TaskId("t"), Attempt(3)) == "t-a3"
