"""The short form of `make chaos`: a few rounds, always the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.chaos.draw import draw
from tests.chaos.plan import SNAPSHOT_STORAGE, FaultKind

SEED = 1
ROUNDS = (250, 407)


@pytest.mark.lab
@pytest.mark.postgres
@pytest.mark.timeout(600)
def test_a_few_rounds() -> None:
    numbers = [word for number in ROUNDS for word in ("--round", str(number))]
    command = [sys.executable, "-m", "tests.chaos", "--seed", str(SEED), *numbers]
    # In a directory that PostgreSQL's user may enter, too, as those of tests are not.
    done = subprocess.run(
        [*command, "--jobs", "2"],
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'hotadd':" in done.stdout, "disks were attached to the proxy's VM"


def test_they_are_worth_their_time() -> None:
    plans = [draw(SEED, number) for number in ROUNDS]
    assert {plan.postgres for plan in plans} == {True, False}
    assert any(plan.servers == 2 for plan in plans)
    assert any(plan.hotadd and plan.restores for plan in plans)
    assert any(plan.storage in SNAPSHOT_STORAGE for plan in plans)
    kinds = {fault.kind for plan in plans for fault in plan.faults}
    assert {FaultKind.KILL, FaultKind.CUT, FaultKind.WINDOW_CLOSED, FaultKind.PROXY_REMOVED} < kinds
