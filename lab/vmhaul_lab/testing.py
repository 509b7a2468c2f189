"""Fixtures for tests that need a site; import them in a conftest.py:

from vmhaul_lab.testing import labvc_binary, quick_site
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from vmhaul_lab import process
from vmhaul_lab.site import LabSite

__all__ = ["labvc_binary", "quick_site"]


@pytest.fixture(scope="session")
def labvc_binary() -> Path:
    """The site's server program, built once."""
    return process.labvc_binary()


@pytest.fixture
def quick_site(tmp_path: Path, labvc_binary: Path) -> Iterator[LabSite]:
    """A started site with two VMs of two small disks each (bare blocks; needs no root)."""
    with LabSite.quick(tmp_path / "site", binary=labvc_binary) as site:
        yield site
