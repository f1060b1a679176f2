"""Fixtures that every part of the suite uses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run, and no deadline: machines that run tests are shared and slow now and then.
settings.register_profile("lexpert", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("lexpert")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of development data beside the checkout; skips where it is missing."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the development data in ../shared, which is not there")
    return SHARED
