"""`vmhaul keys`: what it leaves when it cannot do it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backup_server import key_transfer
from backup_server.cli import app as cli


def test_an_export_onto_a_full_disk_leaves_no_half_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(key_transfer, "export_keys", lambda *_: "sealed")
    monkeypatch.setattr(os, "fsync", full)
    file = tmp_path / "keys"
    words = ["keys", "export", str(file), "--password-stdin", "--data", str(tmp_path)]
    result = CliRunner().invoke(cli.build(), words, input="a long password\n")
    assert result.exit_code == 1
    assert f"{file}: No space left on device" in result.output
    assert not file.exists()


def test_a_password_that_is_no_text_is_refused_without_being_shown(tmp_path: Path) -> None:
    words = ["keys", "export", str(tmp_path / "keys"), "--password-stdin", "--data", str(tmp_path)]
    result = CliRunner().invoke(cli.build(), words, input=b"\xff\xfe-a-long-password\n")
    assert result.exit_code == 1
    assert "not text in UTF-8" in result.output
    assert "long" not in result.output
