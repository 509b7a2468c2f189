"""The short form of `make chaos`: a few rounds, always the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.plan import FaultKind, draw

SEED = 1
ROUNDS = (16, 64)


@pytest.mark.lab
@pytest.mark.postgres
@pytest.mark.timeout(600)
def test_a_few_rounds(tmp_path: Path) -> None:
    numbers = [word for number in ROUNDS for word in ("--round", str(number))]
    command = [sys.executable, "-m", "tests.chaos", "--seed", str(SEED), *numbers]
    done = subprocess.run(
        [*command, "--jobs", "2", "--dir", str(tmp_path / "chaos")],
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_they_are_worth_their_time() -> None:
    plans = [draw(SEED, number) for number in ROUNDS]
    assert {plan.postgres for plan in plans} == {True, False}
    assert any(plan.servers == 2 for plan in plans)
    assert any(plan.hotadd and plan.restores for plan in plans)
    assert {FaultKind.KILL, FaultKind.CUT} < {fault.kind for plan in plans for fault in plan.faults}
