"""Fixtures that every part of the suite uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run, and no deadline: machines that run tests are shared and slow now and then.
settings.register_profile("lexpert", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("lexpert")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

# A cache of compiled kernels for each worker of pytest-xdist, kept between runs: Numba takes no lock on the index
# of a cache, so that two processes that compile a kernel for different types at once may each get the other's.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".lexpert" / "kernels" / worker))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of development data beside the checkout; skips where it is missing."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the development data in ../shared, which is not there")
    return SHARED
