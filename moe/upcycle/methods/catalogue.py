"""Finds a method by its name."""

from __future__ import annotations

from moe.upcycle.methods.copy import CopyMethod
from moe.upcycle.methods.drop import DropMethod
from moe.upcycle.methods.granular import GranularMethod
from moe.upcycle.methods.method import Method
from moe.upcycle.methods.noise import NoiseMethod
from moe.upcycle.methods.split import SplitMethod
from moe.upcycle.plan import MethodName, UpcyclePlan

_METHODS: dict[MethodName, type[Method]] = {
    "copy": CopyMethod,
    "noise": NoiseMethod,
    "drop": DropMethod,
    "granular": GranularMethod,
    "split": SplitMethod,
}


def method_of(plan: UpcyclePlan) -> Method:
    """The method that a plan names.

    Raises:
        UsageError: its options do not go together.
    """
    return _METHODS[plan.method](plan)
