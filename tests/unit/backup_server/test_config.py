from __future__ import annotations

import stat
from pathlib import Path

import pytest
from pydantic import ValidationError

from backup_server.config import Settings, load_settings
from backup_server.errors import SettingsError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("VMHAUL_"):
            monkeypatch.delenv(name)


def test_arguments_win_over_environment_over_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vmhaul.toml").write_text("port = 1\nlease_s = 2\nstep_tries = 3\n")
    monkeypatch.setenv("VMHAUL_LEASE_S", "20")
    monkeypatch.setenv("VMHAUL_STEP_TRIES", "30")
    settings = load_settings(data_dir=tmp_path, step_tries=300, host=None)
    assert (settings.port, settings.lease_s, settings.step_tries) == (1, 20, 300)
    assert settings.host == "127.0.0.1"


def test_data_dir_from_the_environment_finds_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vmhaul.toml").write_text("port = 77\n")
    monkeypatch.setenv("VMHAUL_DATA_DIR", str(tmp_path))
    assert load_settings().port == 77


def test_every_bad_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(data_dir=tmp_path, port=99999, lease_s=-1, colour="red")
    for name in ("port", "lease_s", "colour"):
        assert name in str(caught.value)


def test_unreadable_file_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "vmhaul.toml").write_text("port = = 1\n")
    with pytest.raises(SettingsError, match=r"vmhaul\.toml"):
        load_settings(data_dir=tmp_path)


def test_a_broker_behind_tls_is_known_by_its_certificate(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path, broker="rediss://u:p@h:1/0")
    assert settings.broker == "rediss://u:p@h:1/0?ssl_cert_reqs=required"


def test_frozen(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    with pytest.raises(ValidationError):
        settings.port = 1


def test_places(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    assert settings.database_url == f"sqlite:///{tmp_path}/data/vmhaul.db"
    assert Settings(data_dir=tmp_path, database="postgresql://x/y").database_url == "postgresql://x/y"
    settings.make_directories()
    for path in (settings.run_dir, settings.log_dir, settings.proxies_dir, settings.broker_dir):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_data_dir_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be created"):
        Settings(data_dir=tmp_path / "file" / "data").make_directories()
