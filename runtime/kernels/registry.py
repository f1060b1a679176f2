"""Which backend runs an operation on given arrays.

A backend is a module of this folder with one function per operation that it has, all of the same name and
signature as in `runtime.kernels.reference`. To add one, add its file and its line in `CATALOGUE`. Nothing is
imported before it is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from runtime.activations import Array, is_tensor
from runtime.errors import NotFoundError, UsageError

Kind = tuple[str, str, Any]
"""Of an array: its library, the torch device type or an empty text, and its dtype."""


@dataclass(frozen=True, slots=True)
class Backend:
    """One implementation of the operations.

    Attributes:
        name: what callers pass as ``backend=``.
        module: where its functions are.
        library: the arrays it takes, ``"numpy"`` or ``"torch"``.
        packages: import names that must be installed.
        devices: torch device types it runs on; empty means any.
        unsupported_dtypes: dtypes that it cannot compute with, by NumPy's name.
        judges: whether its module has a function ``unsuitable(*arrays)`` that says more of why it cannot run on
            them, or None; it is asked last, and may be slow the first time.
    """

    name: str
    module: str
    library: str
    packages: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    unsupported_dtypes: tuple[str, ...] = ()
    judges: bool = False

    def probe(self, *arrays: Array) -> str | None:
        """Why this backend cannot run on `arrays` here, or None when it can."""
        reason = self.refusal(_kinds(arrays))
        return self.judgement(*arrays) if reason is None else reason

    def refusal(self, kinds: tuple[Kind, ...]) -> str | None:
        """The part of `probe` that arrays of the same kinds have in common."""
        for library, device, dtype in kinds:
            if library != self.library:
                return f"it takes {self.library} arrays, not {library} ones"
            if self.devices and device and device not in self.devices:
                return f"it runs on {' or '.join(self.devices)}, not on {device}"
            name = str(dtype).removeprefix("torch.")
            if name in self.unsupported_dtypes:
                return f"it does not compute with {name}"
        # Last, because looking for a package that is not imported yet takes longest.
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            return f"it needs {' and '.join(missing)}, which is not installed"
        return None

    def judgement(self, *arrays: Array) -> str | None:
        """The part of `probe` that looks at the arrays themselves."""
        reason: str | None = import_module(self.module).unsuitable(*arrays) if self.judges else None
        return reason


CATALOGUE = (
    Backend(
        "expert_cpu", "runtime.kernels.expert_cpu", "torch", packages=("torch", "numba"), devices=("cpu",)
    ),
    Backend(
        "grouped_mm",
        "runtime.kernels.expert_cuda",
        "torch",
        packages=("torch",),
        devices=("cuda",),
        unsupported_dtypes=("float16", "float32", "float64"),
        judges=True,
    ),
    Backend(
        "numba_tensors",
        "runtime.kernels.numba_tensors",
        "torch",
        packages=("torch", "numba"),
        devices=("cpu",),
    ),
    Backend("torch", "runtime.kernels.torch_backend", "torch", packages=("torch",)),
    Backend(
        "numba",
        "runtime.kernels.numba_cpu",
        "numpy",
        packages=("numba",),
        unsupported_dtypes=("float16", "longdouble", "float128"),
    ),
    Backend("reference", "runtime.kernels.reference", "numpy"),
    # Chosen by name alone: what is above takes the same arrays.
    Backend(
        "triton",
        "runtime.kernels.expert_triton",
        "torch",
        packages=("torch", "triton"),
        devices=("cuda",),
        unsupported_dtypes=("float64",),
        judges=True,
    ),
    Backend(
        "megablocks",
        "runtime.kernels.expert_megablocks",
        "torch",
        packages=("torch", "kernels"),
        devices=("cuda",),
        judges=True,
    ),
)
"""Best first: the first that has the operation and whose probe passes is chosen."""


def kernel(operation: str, *arrays: Array, backend: str | None = None) -> Callable[..., Any]:
    """The function that runs `operation` on `arrays`.

    Args:
        operation: name of a function of `runtime.kernels.reference`.
        arrays: the arrays that it will be called with; their library, device and dtype decide.
        backend: a name of `CATALOGUE`; None takes the best that is available.

    Raises:
        UsageError: `backend` is unknown, lacks the operation or cannot take these arrays; or the arrays are
            partly NumPy's and partly torch's.
        NotFoundError: the package of the named `backend` is not installed.
    """
    if backend is not None:
        return _named(operation, arrays, backend)
    if len({is_tensor(array) for array in arrays}) > 1:
        raise UsageError(f"{operation} got both NumPy arrays and torch tensors; convert one kind first")
    for candidate, function in _able(operation, _kinds(arrays)):
        if candidate.judgement(*arrays) is None:
            return function
    raise UsageError(f"there is no backend for {operation} on these arrays; {_reasons(operation, arrays)}")


def backends(operation: str, *arrays: Array) -> list[str]:
    """Names of the backends that can run `operation` on `arrays`, best first."""
    return [
        candidate.name
        for candidate in CATALOGUE
        if candidate.probe(*arrays) is None and _function(candidate, operation) is not None
    ]


@cache
def _able(operation: str, kinds: tuple[Kind, ...]) -> list[tuple[Backend, Callable[..., Any]]]:
    """The backends for arrays of these kinds up to the first that takes all such arrays.

    Asked for each product of each layer, so it is worked out once.
    """
    able = []
    for candidate in CATALOGUE:
        if candidate.refusal(kinds) is None:
            function = _function(candidate, operation)
            if function is not None:
                able.append((candidate, function))
                if not candidate.judges:
                    break
    return able


def _kinds(arrays: tuple[Array, ...]) -> tuple[Kind, ...]:
    return tuple(
        ("torch", array.device.type, array.dtype) if is_tensor(array) else ("numpy", "", array.dtype)
        for array in arrays
    )


def _named(operation: str, arrays: tuple[Array, ...], name: str) -> Callable[..., Any]:
    for candidate in CATALOGUE:
        if candidate.name == name:
            break
    else:
        known = ", ".join(candidate.name for candidate in CATALOGUE)
        raise UsageError(f"there is no backend {name!r}; there are {known}")
    reason = candidate.probe(*arrays)
    if reason is not None:
        error = NotFoundError if "installed" in reason else UsageError
        raise error(f"backend {name!r} cannot run {operation}: {reason}")
    function = _function(candidate, operation)
    if function is None:
        able = ", ".join(backends(operation, *arrays))
        raise UsageError(f"backend {name!r} does not have {operation}; choose from {able}")
    return function


def _function(backend: Backend, operation: str) -> Callable[..., Any] | None:
    function: Callable[..., Any] | None = getattr(import_module(backend.module), operation, None)
    return function


def _reasons(operation: str, arrays: tuple[Array, ...]) -> str:
    return "; ".join(
        f"{candidate.name}: {candidate.probe(*arrays) or f'does not have {operation}'}"
        for candidate in CATALOGUE
    )
