"""Whether a model may run in bfloat16: the processor computes in it, and the vectors stay close."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from runtime.errors import UsageError

Precision = Literal["auto", "float32", "bfloat16"]

BFLOAT16_ERROR = 0.02
"""Largest ‖bf16 − fp32‖ / ‖fp32‖ over the probe texts' vectors. By Cauchy-Schwarz, scores then move by at
most 2 % of the product of the norms."""

_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is ARM's name

logger = logging.getLogger(__name__)


def processor_has_bfloat16(device: torch.device, cpu_flags: frozenset[str] | None = None) -> bool:
    """Whether bfloat16 products are fast on `device`; emulated ones are slower than float32.

    Args:
        cpu_flags: what the processor says it can do; read from the system when None.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(_CPU_FLAGS & (read_cpu_flags() if cpu_flags is None else cpu_flags))
    return False


def read_cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The flags of the first processor; empty where the system has no such file."""
    if not cpuinfo.is_file():
        return frozenset()
    for line in cpuinfo.read_text("utf-8", errors="replace").splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(flags.split())
    return frozenset()


def vector_error(vectors: Tensor, reference: Tensor) -> float:
    """Largest relative L2 error of the rows; a row that the reference leaves empty counts by its norm."""
    norms = reference.norm(dim=1)
    errors = (vectors - reference).norm(dim=1) / torch.where(norms > 0, norms, torch.ones_like(norms))
    return float(errors.max())


def choose_dtype(
    precision: Precision, has_bfloat16: bool, probe: Callable[[torch.dtype], Tensor]
) -> torch.dtype:
    """The dtype to run a model in; with ``"auto"``, says in the log why.

    Args:
        precision: what the caller asked for. An explicit dtype is taken without a probe.
        has_bfloat16: see `processor_has_bfloat16`.
        probe: encodes the probe texts in a dtype, as dense float32 rows.

    Raises:
        UsageError: `precision` is none of the three.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise UsageError(f"dtype must be auto, float32 or bfloat16, not {precision!r}")
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if not has_bfloat16:
        logger.info("encoding in float32: the processor has no bfloat16 arithmetic")
        return torch.float32
    error = vector_error(probe(torch.bfloat16), probe(torch.float32))
    if error <= BFLOAT16_ERROR:  # false for NaN as well
        logger.info(
            "encoding in bfloat16: vectors differ from float32 by %.2g, at most %g", error, BFLOAT16_ERROR
        )
        return torch.bfloat16
    logger.info("encoding in float32: bfloat16 vectors differ by %.2g, more than %g", error, BFLOAT16_ERROR)
    return torch.float32
