"""Products of groups of entries with the rows of their experts' weights, on all of torch's threads.

Work is cut into blocks of rows of one expert. A thread that is free takes the next block, so each weight comes from
memory once for all entries of its expert, and a thread that loses its core for a while holds up one block only.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import carray, cfunc, literally, njit, types

from runtime.kernels import vector_tiles
from runtime.kernels.kernel_sources import digest_of_sources
from runtime.kernels.reference import Numbers
from runtime.kernels.thread_crew import run_on_crew
from runtime.kernels.vector_tiles import array_at, multiply_strip, take_next

ROWS_OF_BLOCK = 48
"""A multiple of every tile's rows: 192 KB of float32 weights at 1,024 columns, which stay in a core's cache."""

COLUMNS_OF_BLOCK = 1024
"""So many columns of four tokens fill half of a first-level cache, and so many products of int8 weights with int16
values add up in eight lanes of int32: ``1024 / 8 · 127 · 32767 < 2**31``."""

LARGEST_CODE = 32767
"""Of values in int16."""

INFINITY = 0x7F800000
"""The bits of infinity in float32."""


class Job(NamedTuple):
    """What the threads share: sizes, and addresses of contiguous arrays.

    Attributes:
        next: the block of rows that is taken next; 0.
        groups: of entries, each of an expert of its own.
        experts: number of matrices.
        rows, columns: of each matrix.
        entries: number of values.
        value_stride: from one value to the next.
        active: int64 ``[groups]``, the experts that have entries.
        offsets: int64 ``[experts + 1]``; what stands for the others does not matter.
        weights: ``[experts, rows, columns]``.
        weight_scales: float32 ``[experts, rows]`` of int8 weights, bfloat16 ``[experts, rows, columns / group]`` of
            int4 ones.
        values: float32 ``[entries, value_stride]``; int16 for int8 weights, int8 for int4 ones.
        value_scales: of such values, float32: ``[entries]``, or ``[entries, columns / group, 2]`` as
            `quantise_values_by_group` makes them.
        bias: float32 ``[experts, rows]``, or 0 for none.
        result: float32 ``[entries, rows]``.
    """

    next: int
    groups: int
    experts: int
    rows: int
    columns: int
    entries: int
    value_stride: int
    active: int
    offsets: int
    weights: int
    weight_scales: int
    values: int
    value_scales: int
    bias: int
    result: int


JOB = np.dtype([(name, np.int64) for name in Job._fields])
"""A `Job` as compiled code sees it."""


def run_job(kind: str, job: Job, num_threads: int) -> None:
    """Let the threads work on a job.

    Args:
        kind: of the weights: ``"float32"``, ``"bfloat16"``, ``"int8"``, ``"int4-32"`` or ``"int4-128"``.
        job: whose arrays the caller keeps alive.
        num_threads: at most so many; no more than there are blocks of rows.
    """
    blocks = job.groups * -(-job.rows // ROWS_OF_BLOCK)
    shared = np.array(job, np.int64)
    run_on_crew(_compiled(kind), shared.ctypes.data, max(min(num_threads, blocks), 1))


@njit(nogil=True, cache=True)
def _highest(values: Numbers) -> Any:
    """The highest magnitude, 0 of none; NaN if one is NaN or infinite, which comparisons of numbers would pass over."""
    # Without their sign, bits are in the order of the numbers, then infinity, then NaN.
    highest = np.int32(0)
    for place in range(len(values)):
        bits = np.float32(abs(values[place])).view(np.int32)
        highest = bits if bits > highest else highest
    return np.int32(highest).view(np.float32) if highest < INFINITY else np.float32(np.nan)


@njit(nogil=True, cache=True)
def quantise_values(values: Numbers, codes: Numbers, scales: Numbers) -> None:
    """Each row of `values` as ``scale · code`` in int16; columns that only `codes` has become 0.

    The scale of a row that has a NaN or an infinity is NaN, and so is all that is computed of it.
    """
    columns = values.shape[1]
    for entry in range(len(values)):
        highest = _highest(values[entry])
        scales[entry] = highest / np.float32(LARGEST_CODE)
        if not highest > 0:
            codes[entry] = 0
            continue
        inverse = np.float32(LARGEST_CODE) / highest
        for column in range(columns):
            codes[entry, column] = np.int16(np.rint(values[entry, column] * inverse))
        codes[entry, columns:] = 0


@njit(nogil=True, cache=True)
def quantise_values_by_group(values: Numbers, codes: Numbers, factors: Numbers, group: int) -> None:
    """Each group of columns as ``factors[…, 0] · code`` in int8; ``factors[…, 1]`` is minus its sum.

    Columns that only `codes` has become 0. The factors of a group that has a NaN or an infinity are NaN.
    """
    columns = values.shape[1]
    for entry in range(len(values)):
        codes[entry, columns:] = 0
        for place in range(factors.shape[1]):
            first, last = place * group, min((place + 1) * group, columns)
            numbers, found = values[entry, first:last], codes[entry, first:last]
            highest = _highest(numbers)
            if not highest > 0:
                found[:] = 0
                factors[entry, place] = highest
                continue
            inverse = np.float32(127) / highest
            # Two loops from 0, in 32 bits: only so do they become vector instructions.
            for column in range(len(numbers)):
                found[column] = np.int8(np.int32(np.rint(numbers[column] * inverse)))
            total = np.int32(0)
            for column in range(len(found)):
                total = np.int32(total + found[column])
            scale = highest / np.float32(127)
            factors[entry, place, 0] = scale
            factors[entry, place, 1] = -scale * total


@njit(nogil=True)
def multiply_block(
    job: Any,
    expert: int,
    first: int,
    last: int,
    weights: Numbers,
    values: Numbers,
    scales: Numbers,
    factors: Numbers,
    group: int,
) -> None:
    """A block of rows of one expert times its entries, four at a time while the rows are in the cache."""
    group = literally(group)
    rows, columns, stride = job.rows, job.columns, job.value_stride
    offsets = carray(array_at(job.offsets), job.experts + 1, np.int64)
    result = carray(array_at(job.result), (job.entries, rows), np.float32)
    packed = 2 if group else 1
    scale_stride = columns // group if group else 0
    begin, end = offsets[expert], offsets[expert + 1]
    result[begin:end, first:last] = 0
    for left in range(0, columns, COLUMNS_OF_BLOCK):
        width = min(COLUMNS_OF_BLOCK, columns - left)
        weight, row = (expert * rows * columns + left) // packed, columns // packed
        left_groups = left // group if group else 0
        scale = expert * rows * scale_stride + left_groups
        for entry in range(begin, end, 4):
            value, sums = entry * stride + left, entry * rows
            factor, pairs = 2 * (entry * scale_stride + left_groups), 2 * scale_stride
            # fmt: off
            if end - entry >= 4:
                multiply_strip(4, group, first, last, width, weights, weight, row, values, value, stride,
                               result, sums, rows, scales, scale, scale_stride, factors, factor, pairs)
            elif end - entry == 3:
                multiply_strip(3, group, first, last, width, weights, weight, row, values, value, stride,
                               result, sums, rows, scales, scale, scale_stride, factors, factor, pairs)
            elif end - entry == 2:
                multiply_strip(2, group, first, last, width, weights, weight, row, values, value, stride,
                               result, sums, rows, scales, scale, scale_stride, factors, factor, pairs)
            else:
                multiply_strip(1, group, first, last, width, weights, weight, row, values, value, stride,
                               result, sums, rows, scales, scale, scale_stride, factors, factor, pairs)
            # fmt: on


@njit(nogil=True)
def finish_block(job: Any, expert: int, first: int, last: int, scaled: bool) -> None:
    """Undo the scales of int8 rows and of their values, and add the bias."""
    offsets = carray(array_at(job.offsets), job.experts + 1, np.int64)
    result = carray(array_at(job.result), (job.entries, job.rows), np.float32)
    if scaled:
        value_scales = carray(array_at(job.value_scales), job.entries, np.float32)
        row_scales = carray(array_at(job.weight_scales), (job.experts, job.rows), np.float32)
        for entry in range(offsets[expert], offsets[expert + 1]):
            for row in range(first, last):
                result[entry, row] *= value_scales[entry] * row_scales[expert, row]
    if job.bias:
        bias = carray(array_at(job.bias), (job.experts, job.rows), np.float32)
        for entry in range(offsets[expert], offsets[expert + 1]):
            for row in range(first, last):
                result[entry, row] += bias[expert, row]


@njit(nogil=True)
def _take_block(address: Any, job: Any) -> tuple[int, int, int]:
    """The next expert and its rows; expert -1 when nothing is left."""
    blocks = (job.rows + ROWS_OF_BLOCK - 1) // ROWS_OF_BLOCK
    taken: int = take_next(address)
    if taken >= job.groups * blocks:
        return -1, 0, 0
    active = carray(array_at(job.active), job.groups, np.int64)
    first = taken % blocks * ROWS_OF_BLOCK
    return active[taken // blocks], first, min(first + ROWS_OF_BLOCK, job.rows)


def _float32_work(sources: int) -> Any:
    def work(address: Any) -> None:
        if not sources:
            return
        job = carray(address, 1, JOB)[0]
        weights = carray(array_at(job.weights), job.experts * job.rows * job.columns, np.float32)
        values = carray(array_at(job.values), job.entries * job.value_stride, np.float32)
        expert, first, last = _take_block(address, job)
        while expert >= 0:
            multiply_block(job, expert, first, last, weights, values, weights, values, 0)
            finish_block(job, expert, first, last, False)
            expert, first, last = _take_block(address, job)

    return work


def _bfloat16_work(sources: int) -> Any:
    def work(address: Any) -> None:
        if not sources:
            return
        job = carray(address, 1, JOB)[0]
        weights = carray(array_at(job.weights), job.experts * job.rows * job.columns, np.uint16)
        values = carray(array_at(job.values), job.entries * job.value_stride, np.float32)
        expert, first, last = _take_block(address, job)
        while expert >= 0:
            multiply_block(job, expert, first, last, weights, values, weights, values, 0)
            finish_block(job, expert, first, last, False)
            expert, first, last = _take_block(address, job)

    return work


def _int8_work(sources: int) -> Any:
    def work(address: Any) -> None:
        if not sources:
            return
        job = carray(address, 1, JOB)[0]
        weights = carray(array_at(job.weights), job.experts * job.rows * job.columns, np.int8)
        values = carray(array_at(job.values), job.entries * job.value_stride, np.int16)
        expert, first, last = _take_block(address, job)
        while expert >= 0:
            multiply_block(job, expert, first, last, weights, values, weights, values, 0)
            finish_block(job, expert, first, last, True)
            expert, first, last = _take_block(address, job)

    return work


@njit(nogil=True)
def _int4_blocks(address: Any, job: Any, group: int) -> None:
    group = literally(group)
    weights = carray(array_at(job.weights), job.experts * job.rows * job.columns // 2, np.uint8)
    scales = carray(array_at(job.weight_scales), job.experts * job.rows * (job.columns // group), np.uint16)
    values = carray(array_at(job.values), job.entries * job.value_stride, np.int8)
    factors = carray(array_at(job.value_scales), job.entries * 2 * (job.columns // group), np.float32)
    expert, first, last = _take_block(address, job)
    while expert >= 0:
        multiply_block(job, expert, first, last, weights, values, scales, factors, group)
        finish_block(job, expert, first, last, False)
        expert, first, last = _take_block(address, job)


def _int4_32_work(sources: int) -> Any:
    def work(address: Any) -> None:
        if not sources:
            return
        _int4_blocks(address, carray(address, 1, JOB)[0], 32)

    return work


def _int4_128_work(sources: int) -> Any:
    def work(address: Any) -> None:
        if not sources:
            return
        _int4_blocks(address, carray(address, 1, JOB)[0], 128)

    return work


# Each takes what `runtime.kernels.kernel_sources` says from around it, which is never 0.
_WORK = {
    "float32": _float32_work,
    "bfloat16": _bfloat16_work,
    "int8": _int8_work,
    "int4-32": _int4_32_work,
    "int4-128": _int4_128_work,
}


@cache
def _compiled(kind: str) -> Any:
    """What a thread runs for a kind of weights, compiled when it is first wanted."""
    work = _WORK[kind](digest_of_sources(vector_tiles))
    return cfunc(types.void(types.voidptr), cache=True)(work)
