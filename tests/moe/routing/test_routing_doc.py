"""docs/routing.md: its example runs, and its table is the catalogue."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moe.routing.catalogue import ROUTERS, router_options

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "routing.md").read_text("utf-8")


def test_the_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2.0 200\n{'load_balance': ")


def test_the_table_has_every_family() -> None:
    assert set(re.findall(r"^\| `(\w+)` \| .* \| .* \| .* \| .* \|$", PAGE, re.MULTILINE)) == set(ROUTERS)


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_the_table_has_the_options_of_each_family_with_their_defaults(name: str) -> None:
    (cell,) = re.findall(rf"^\| `{name}` \| .* \| .* \| (.*) \| .* \|$", PAGE, re.MULTILINE)
    expected = {
        option if default is inspect.Parameter.empty else f"{option}={default!r}".replace("'", '"')
        for option, default in router_options(name).items()
    }
    assert set(re.findall(r"`([^`]+)`", cell)) == expected
