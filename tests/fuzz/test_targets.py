"""A bounded share of fuzzing in every test run: all kept seeds, and inputs made from them."""

from __future__ import annotations

import os
import random
import time
import tracemalloc

import pytest

from tests.fuzz.mutate import inputs
from tests.fuzz.targets import TARGETS

INPUTS = int(os.environ.get("VMHAUL_FUZZ_INPUTS", "400"))
MEMORY_BYTES = 64 << 20
"""More than any of these inputs is worth, and far less than a length in it can ask for."""
LONGEST_INPUT_S = 20.0


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_only_declared_errors_leave_a_parser(name: str) -> None:
    target = TARGETS[name]
    rng = random.Random(name)
    for data in inputs(target.seeds(), INPUTS, rng):
        try:
            target.run(data)
        except BaseException as error:
            error.add_note(f"target {name}, input {data!r}")
            raise


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_no_input_takes_memory_or_time_that_it_is_not_worth(name: str) -> None:
    target = TARGETS[name]
    rng = random.Random(name + " again")
    tracemalloc.start()
    try:
        for data in inputs(target.seeds(), INPUTS // 4, rng):
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            began = time.thread_time()
            target.run(data)
            took_s = time.thread_time() - began
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < MEMORY_BYTES, f"{peak - before} bytes for {data!r}"
            assert took_s < LONGEST_INPUT_S, f"{took_s} s for {data!r}"
    finally:
        tracemalloc.stop()


def test_seeds_of_parsers_are_accepted() -> None:
    """Where a target begins with what is good, the parser takes it: else only its first lines are tried."""
    for name in (
        "index_payload",
        "footer_payload",
        "point_manifest",
        "blob_content",
        "nfc_answers",
        "vmfs_sparse",
        "se_sparse",
        "partition_table",
        "disk_chain",
        "file_pointers",
    ):
        target = TARGETS[name]
        assert target.made_seeds
        target.body(target.made_seeds[0])
