from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from runtime.activations import SparseActivations
from runtime.errors import NotFoundError, UsageError
from runtime.kernels import reference, registry
from runtime.kernels.registry import CATALOGUE, Backend, backends, kernel

FLOATS = np.zeros((1, 2), np.float32)


def test_the_fastest_backend_for_the_arrays_is_chosen() -> None:
    assert kernel("top_k", FLOATS).__module__ == "runtime.kernels.numba_cpu"
    assert kernel("top_k", torch.zeros(1, 2)).__module__ == "runtime.kernels.numba_tensors"
    assert kernel("grouped_matmul", FLOATS) is reference.grouped_matmul


def test_what_a_backend_cannot_compute_falls_to_the_reference() -> None:
    assert kernel("top_k", FLOATS.astype(np.float16)) is reference.top_k


def test_backends_are_listed_best_first() -> None:
    assert backends("top_k", FLOATS) == ["numba", "reference"]
    assert backends("top_k", torch.zeros(1)) == ["numba_tensors", "torch"]


def test_the_reference_and_torch_have_every_operation() -> None:
    from runtime.kernels import numba_cpu, torch_backend

    operations = {
        name
        for name, function in vars(reference).items()
        if getattr(function, "__module__", "") == reference.__name__ and not name.startswith("_")
    }
    operations -= {"rows_of_nonzeros", "row_dtype", "offsets_of", "sum_dtype"}
    assert len(operations) == 15
    assert {name for name in operations if not hasattr(torch_backend, name)} == set()
    own = {name for name in vars(numba_cpu) if not name.startswith("_") and name in operations}
    assert {"dispatch", "transpose", "coalesce", "top_k", "combine", "score"} <= own


@pytest.mark.parametrize(
    ("backend", "arrays", "message"),
    [
        ("cuda", (FLOATS,), r"no backend 'cuda'; there are .*torch, numba, reference"),
        ("torch", (FLOATS,), "takes torch arrays, not numpy"),
        ("numba", (torch.zeros(1),), "takes numpy arrays, not torch"),
        ("numba", (FLOATS.astype(np.float16),), "does not compute with float16"),
        (None, (FLOATS, torch.zeros(1)), "both NumPy arrays and torch tensors"),
    ],
)
def test_an_impossible_choice_says_why(backend: str | None, arrays: tuple, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kernel("top_k", *arrays, backend=backend)


def test_an_operation_that_a_backend_lacks_names_those_that_have_it() -> None:
    with pytest.raises(UsageError, match="'numba' does not have grouped_matmul; choose from reference"):
        kernel("grouped_matmul", FLOATS, backend="numba")
    with pytest.raises(UsageError, match="no backend for polish"):
        kernel("polish", FLOATS)


def test_a_probe_tells_missing_packages_and_devices() -> None:
    missing = Backend("x", "runtime.kernels.x", "numpy", packages=("a_package_that_is_not_there",))
    assert "a_package_that_is_not_there" in (missing.probe(FLOATS) or "")
    on_gpu = Backend("x", "runtime.kernels.x", "torch", devices=("cuda",))
    assert on_gpu.probe(torch.zeros(1)) == "it runs on cuda, not on cpu"
    assert all(isinstance(backend, Backend) for backend in CATALOGUE)


def test_an_explicit_backend_whose_package_is_missing_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.kernels.registry.find_spec", lambda _: None)
    with pytest.raises(NotFoundError, match="numba, which is not installed"):
        kernel("top_k", FLOATS, backend="numba")
    # Without Numba and torch everything still runs.
    registry._able.cache_clear()
    try:
        assert kernel("top_k", FLOATS) is reference.top_k
    finally:
        registry._able.cache_clear()


def test_numpy_arrays_never_bring_torch_in() -> None:
    program = (
        "import sys\n"
        "from runtime import SparseActivations\n"
        "assert 'numba' not in sys.modules\n"
        "batch = SparseActivations.from_rows([([1, 0, 1], [1.0, 2.0, 3.0])], 2)\n"
        "assert batch.coalesce().transpose().to_dense().tolist() == [[2.0], [4.0]]\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_public_functions_take_a_backend_by_name(backend: str) -> None:
    from runtime.dispatch import transpose

    batch = SparseActivations.from_rows([([1], [1.0])], 2)
    assert transpose(batch, backend=backend).indptr.tolist() == [0, 0, 1]
