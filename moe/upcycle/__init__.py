"""Upcycling: a dense checkpoint made sparse, and back.

The package can be called: ``moe.upcycle(dense, out, experts=8, top_k=2)`` is `moe.upcycle.convert.upcycle`. That
is its name in Python and on the command line, and importing any module from here binds the package to it.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe.upcycle.convert import UpcycleReport


def upcycle(*arguments: Any, **options: Any) -> UpcycleReport:
    """Make a mixture-of-experts checkpoint of a dense one; see `moe.upcycle.convert.upcycle`."""
    from moe.upcycle.convert import upcycle as convert

    return convert(*arguments, **options)


class _CallablePackage(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> UpcycleReport:
        return upcycle(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
