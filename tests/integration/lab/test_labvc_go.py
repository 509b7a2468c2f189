"""The unit tests of the site's server program, in its own language."""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

SOURCE = Path(__file__).parents[3] / "lab" / "labvc"


def test_go_unit_tests_pass() -> None:
    env = {**os.environ, "GO111MODULE": "off", "GOFLAGS": "", "GOPATH": "/usr/share/gocode"}
    done = subprocess.run(
        ["go", "test", "."], cwd=SOURCE, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_source_is_formatted() -> None:
    done = subprocess.run(["gofmt", "-l", "."], cwd=SOURCE, capture_output=True, text=True, check=True)
    assert not done.stdout
