"""Fixtures that every part of the suite uses."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of development data beside the checkout; skips where it is missing."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the development data in ../shared, which is not there")
    return SHARED
