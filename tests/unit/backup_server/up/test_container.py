"""What runs in containers besides server and proxies: secrets made once, health, Flower behind a password."""

from __future__ import annotations

import http.server
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from backup_server import broker
from backup_server.config import load_settings
from backup_server.up import container_secrets, flower, healthcheck
from backup_server.up.options import UpError

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def test_secrets_are_made_once_and_for_their_readers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners: dict[str, int] = {}

    def give(path: Path, owner: int) -> None:
        owners[str(path.relative_to(tmp_path))] = owner

    made = container_secrets.make(tmp_path, now=NOW, give=give, own=10470)
    assert set(made) == set(owners)
    assert owners["redis/server.key"] == container_secrets.REDIS_UID
    assert owners["server/vmhaul_broker"] == 10470
    assert all(stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o400 for name in made)
    certificate = x509.load_pem_x509_certificate((tmp_path / "redis" / "server.pem").read_bytes())
    # Nothing renews it, so it must not end with the second year.
    assert certificate.not_valid_after_utc - NOW > timedelta(days=10 * 365)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "redis" in names.get_values_for_type(x509.DNSName)
    held = {name: (tmp_path / name).read_bytes() for name in made}
    assert container_secrets.make(tmp_path, now=NOW, give=give, own=10470) == []
    assert held == {name: (tmp_path / name).read_bytes() for name in made}
    # The server reads them as settings; the broker knows a digest only.
    monkeypatch.setenv("VMHAUL_SECRETS_DIR", str(tmp_path / "server"))
    settings = load_settings(data_dir=tmp_path / "data")
    assert settings.broker.startswith("rediss://vmhaul:")
    assert settings.database.endswith("@postgres/vmhaul")
    password = settings.broker.split("@", maxsplit=1)[0].rpartition(":")[2]
    assert password not in held["redis/redis.conf"].decode()


def test_the_broker_of_the_containers_is_bounded_as_the_embedded_one(tmp_path: Path) -> None:
    container_secrets.make(tmp_path, now=NOW, give=lambda path, owner: None, own=10470)
    lines = (tmp_path / "redis" / "redis.conf").read_text().splitlines()
    assert set(broker.BOUNDS) < set(lines)
    assert f"maxmemory {broker.default_memory_bytes()}" in lines


@pytest.fixture
def door() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/well" else 503)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_health_is_what_the_door_says(door: str) -> None:
    assert healthcheck.answers(f"{door}/well")
    assert not healthcheck.answers(f"{door}/unwell")
    assert not healthcheck.answers("http://127.0.0.1:1/")


def test_flower_is_open_to_the_network_behind_a_password_only(tmp_path: Path) -> None:
    assert "--basic_auth" not in " ".join(flower.arguments_of("127.0.0.1", 5555, ""))
    with pytest.raises(UpError, match="--login-file"):
        flower.arguments_of("0.0.0.0", 5555, "")
    words = flower.arguments_of("0.0.0.0", 5555, "me:secret")
    assert {"--read_only=True", "--basic_auth=me:secret"} <= set(words)
    file = tmp_path / "login"
    file.write_text("me:")
    with pytest.raises(UpError, match="USER:PASSWORD"):
        flower._login(file)
    assert flower._login(None) == ""
