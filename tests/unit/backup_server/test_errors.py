from __future__ import annotations

import inspect

import pytest

from backup_server import errors
from backup_server.errors import INTERNAL, OUTCOMES, NotFoundError, VmhaulError, outcome_of


def test_every_class_has_its_row() -> None:
    classes = {
        found
        for _, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, VmhaulError) and found is not VmhaulError
    }
    assert classes == set(OUTCOMES)


def test_subclasses_take_the_nearest_row() -> None:
    class NoSuchDiskError(NotFoundError):
        pass

    assert outcome_of(NoSuchDiskError("x")).http_status == 404
    assert outcome_of(ValueError("x")) == outcome_of(VmhaulError("x")) == INTERNAL


@pytest.mark.parametrize("kind", list(OUTCOMES))
def test_rows_are_sane(kind: type[VmhaulError]) -> None:
    row = OUTCOMES[kind]
    assert 400 <= row.http_status <= 599
    assert row.code == row.code.lower().strip()
    error = kind("what, which, what now", details={"a": 1})
    assert (str(error), error.details) == ("what, which, what now", {"a": 1})
