"""What the threads do for a layer of experts with few tokens, from the router's choice to the sum, in one region.

The work is a row of phases: sort the routes by expert, bring the tokens' values into place, multiply with the first
matrices, activate, multiply with the second ones, add up. In each phase a thread that is free takes the next item, and
a phase begins when all items of the one before are done. Waiting for that is active: it takes about as long as the last
item of the other threads, some microseconds, while to wake a thread up may take fifty.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numba import carray, cfunc, literally, njit, types

from runtime.kernels import expert_rows, few_tokens, vector_tiles
from runtime.kernels.expert_rows import (
    JOB,
    ROWS_OF_BLOCK,
    finish_block,
    multiply_block,
    quantise_values,
    quantise_values_by_group,
)
from runtime.kernels.few_tokens import (
    ACTIVATE,
    ADD_UP,
    COUNTER_BYTES,
    DOWN,
    FIELDS,
    GATHER,
    SORT,
    UP,
)
from runtime.kernels.kernel_sources import digest_of_sources
from runtime.kernels.reference import Numbers
from runtime.kernels.vector_tiles import array_at, call_at, read_count, take_next

LAYER = np.dtype([*((name, np.int64) for name in FIELDS), ("up", JOB), ("down", JOB)])

SPINS = 2000
"""Looks at a counter, some microseconds, after which a waiting thread offers its core to others."""

LOG2_E = np.float32(1.44269504)
LN2_HIGH = np.float32(0.693359375)
LN2_LOW = np.float32(-2.12194440e-4)
ROUNDER = np.float32(1.5 * 2**23)
"""Added to a number of few bits, it leaves the nearest whole number in the lowest bits."""
LOWEST, HIGHEST = np.float32(-87.3), np.float32(88.72)
ONE, TWO, HALF = np.float32(1), np.float32(2), np.float32(0.5)
EXP_TERMS = tuple(
    np.float32(term)
    for term in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
)
"""Of the polynomial for ``(exp(x) - 1 - x) / x²`` near 0, from Moshier's Cephes."""
INFINITE = np.float32(np.inf)
ROOT_2_OVER_PI = np.float32(np.sqrt(2 / np.pi))
CUBIC = np.float32(0.044715)
QUICK = np.float32(1.702)
ROOT_HALF = np.float32(np.sqrt(0.5))


@njit(nogil=True)
def _take(layer: Any, phase: int) -> int:
    taken: int = take_next(array_at(layer.counters + 2 * phase * COUNTER_BYTES))
    return taken


@njit(nogil=True)
def _finish(layer: Any, phase: int) -> None:
    take_next(array_at(layer.counters + (2 * phase + 1) * COUNTER_BYTES))


@njit(nogil=True)
def _wait(layer: Any, phase: int, items: int) -> None:
    """Until all items of a phase are done."""
    spins = 0
    while read_count(array_at(layer.counters + (2 * phase + 1) * COUNTER_BYTES)) < items:
        spins += 1
        if spins > SPINS and layer.yield_core:
            call_at(layer.yield_core)


@njit(nogil=True)
def _sort_routes(layer: Any) -> bool:
    """Entries by expert, those of one expert in the order of their tokens; False where a route leads nowhere."""
    experts, routes, tokens = layer.up.experts, layer.routes, layer.tokens
    offsets = carray(array_at(layer.up.offsets), experts + 1, np.int64)
    active = carray(array_at(layer.up.active), experts, np.int64)
    rows = carray(array_at(layer.rows), routes, np.int64)
    places = carray(array_at(layer.places), routes, np.int64)
    units = carray(array_at(layer.units), routes, np.int64)
    narrow_units = carray(array_at(layer.units), routes, np.int32)
    is_narrow = layer.unit_bytes == 4
    offsets[:] = 0
    for route in range(routes):
        unit = np.int64(narrow_units[route]) if is_narrow else units[route]
        if unit < 0 or unit >= experts:
            return False
        offsets[unit + 1] += 1
    for expert in range(experts):
        offsets[expert + 1] += offsets[expert]
        active[expert] = offsets[expert]
    end = 0
    for token in range(tokens):
        first, end = end, end + layer.top_k
        if layer.indptr:
            indptr = carray(array_at(layer.indptr), tokens + 1, np.int64)
            first, end = indptr[token], indptr[token + 1]
            if first < 0 or end < first or end > routes:
                return False
        for route in range(first, end):
            unit = np.int64(narrow_units[route]) if is_narrow else units[route]
            entry = active[unit]
            # Overlapping routes of tokens would lead behind the last one.
            if entry >= offsets[unit + 1]:
                return False
            active[unit] = entry + 1
            rows[entry], places[entry] = token, route
    for expert in range(experts):
        if active[expert] != offsets[expert + 1]:
            return False
    groups = 0
    for expert in range(experts):
        if offsets[expert + 1] > offsets[expert]:
            active[groups] = expert
            groups += 1
    layer.up.groups = groups
    layer.down.groups = groups
    return True


@njit(nogil=True)
def _sort(layer: Any) -> None:
    if _take(layer, SORT) == 0:
        if not _sort_routes(layer):
            layer.wrong = 1
            layer.routes = 0
            layer.tokens = 0
            layer.up.groups = 0
            layer.down.groups = 0
        _finish(layer, SORT)
    _wait(layer, SORT, 1)


@njit(nogil=True)
def _widen(layer: Any, token: int, target: Numbers) -> None:
    """Hidden states of a token in float32."""
    width = layer.width
    if layer.narrow_hidden:
        halves = carray(array_at(layer.hidden + 2 * token * width), width, np.uint16)
        words = target.view(np.uint32)
        for column in range(width):
            words[column] = np.uint32(halves[column]) << np.uint32(16)
    else:
        target[:] = carray(array_at(layer.hidden + 4 * token * width), width, np.float32)


@njit(nogil=True, error_model="numpy")
def _exp(x: Any) -> Any:
    """float32, within a few units of the last place; infinity and NaN stay."""
    # In the form of this comparison, NaN becomes LOWEST.
    inside = x if x > LOWEST else LOWEST
    inside = inside if inside < HIGHEST else HIGHEST
    turned = inside * LOG2_E + ROUNDER
    whole = turned - ROUNDER
    rest = inside - whole * LN2_HIGH - whole * LN2_LOW
    power = EXP_TERMS[0]
    power = power * rest + EXP_TERMS[1]
    power = power * rest + EXP_TERMS[2]
    power = power * rest + EXP_TERMS[3]
    power = power * rest + EXP_TERMS[4]
    power = power * rest + EXP_TERMS[5]
    power = np.float32(power * rest * rest + rest + ONE)
    turns = np.float32(turned).view(np.uint32) << np.uint32(23)
    result = np.uint32(np.float32(power).view(np.uint32) + turns).view(np.float32)
    result = result if x < HIGHEST else INFINITE
    return result if x == x else x  # NaN


@njit(nogil=True, error_model="numpy")
def _silu(x: Any) -> Any:
    return x / (ONE + _exp(-x))


@njit(nogil=True, error_model="numpy")
def _gelu(x: Any) -> Any:
    return HALF * x * (ONE + np.float32(math.erf(x * ROOT_HALF)))


@njit(nogil=True, error_model="numpy")
def _gelu_tanh(x: Any) -> Any:
    # 1 + tanh(y) = 2 / (1 + exp(-2y))
    return x / (ONE + _exp(-TWO * ROOT_2_OVER_PI * (x + CUBIC * x * x * x)))


@njit(nogil=True, error_model="numpy")
def _quick_gelu(x: Any) -> Any:
    return x / (ONE + _exp(-QUICK * x))


@njit(nogil=True, error_model="numpy")
def _relu(x: Any) -> Any:
    return np.float32(0) if x < 0 else x


@njit(nogil=True, error_model="numpy")
def _activate_row(layer: Any, row: Numbers) -> None:
    """The first `inner` numbers of a row of products become what the second product takes."""
    inner, which = layer.inner, layer.activation
    if which == 0:
        for place in range(inner):
            row[place] = _silu(row[place])
    elif which == 1:
        for place in range(inner):
            row[place] = _gelu(row[place])
    elif which == 2:
        for place in range(inner):
            row[place] = _gelu_tanh(row[place])
    elif which == 3:
        for place in range(inner):
            row[place] = _quick_gelu(row[place])
    else:
        for place in range(inner):
            row[place] = _relu(row[place])
    if layer.gated:
        for place in range(inner):
            row[place] *= row[inner + place]


@njit(nogil=True)
def _quantise_row(job: Any, entry: int, row: Numbers, group: int) -> None:
    """An entry of a product's values in few bits, with its scales."""
    columns = job.columns
    if group:
        groups = columns // group
        codes = carray(array_at(job.values + entry * columns), (1, columns), np.int8)
        factors = carray(array_at(job.value_scales + 8 * entry * groups), (1, groups, 2), np.float32)
        quantise_values_by_group(row.reshape((1, len(row))), codes, factors, group)
    else:
        wide_codes = carray(array_at(job.values + 2 * entry * columns), (1, columns), np.int16)
        scales = carray(array_at(job.value_scales + 4 * entry), 1, np.float32)
        quantise_values(row.reshape((1, len(row))), wide_codes, scales)


@njit(nogil=True)
def _gather(layer: Any, bits: int, group: int) -> None:
    width = layer.width
    rows = carray(array_at(layer.rows), layer.routes, np.int64)
    entry = _take(layer, GATHER)
    while entry < layer.routes:
        if bits == 32:
            _widen(
                layer, rows[entry], carray(array_at(layer.up.values + 4 * entry * width), width, np.float32)
            )
        else:
            wide = carray(array_at(layer.wide + 4 * entry * width), width, np.float32)
            _widen(layer, rows[entry], wide)
            _quantise_row(layer.up, entry, wide, group)
        _finish(layer, GATHER)
        entry = _take(layer, GATHER)
    _wait(layer, GATHER, layer.routes)


@njit(nogil=True)
def _activate(layer: Any, bits: int, group: int) -> None:
    rows, inner = layer.up.rows, layer.inner
    entry = _take(layer, ACTIVATE)
    while entry < layer.routes:
        row = carray(array_at(layer.up.result + 4 * entry * rows), rows, np.float32)
        _activate_row(layer, row)
        if bits != 32:
            _quantise_row(layer.down, entry, row[:inner], group)
        _finish(layer, ACTIVATE)
        entry = _take(layer, ACTIVATE)
    _wait(layer, ACTIVATE, layer.routes)


@njit(nogil=True)
def _multiply(
    layer: Any,
    job: Any,
    phase: int,
    weights: Numbers,
    values: Numbers,
    scales: Numbers,
    factors: Numbers,
    group: int,
    scaled: bool,
) -> None:
    group = literally(group)
    blocks = (job.rows + ROWS_OF_BLOCK - 1) // ROWS_OF_BLOCK
    items = job.groups * blocks
    active = carray(array_at(job.active), job.experts, np.int64)
    item = _take(layer, phase)
    while item < items:
        expert, first = active[item // blocks], item % blocks * ROWS_OF_BLOCK
        last = min(first + ROWS_OF_BLOCK, job.rows)
        multiply_block(job, expert, first, last, weights, values, scales, factors, group)
        finish_block(job, expert, first, last, scaled)
        _finish(layer, phase)
        item = _take(layer, phase)
    _wait(layer, phase, items)


@njit(nogil=True)
def _weight_of(layer: Any, route: int) -> Any:
    if layer.narrow_weights:
        half = carray(array_at(layer.weights), layer.routes, np.uint16)[route]
        return np.uint32(np.uint32(half) << np.uint32(16)).view(np.float32)
    return carray(array_at(layer.weights), layer.routes, np.float32)[route]


@njit(nogil=True)
def _narrow(wide: Numbers, halves: Numbers) -> None:
    """float32 to bfloat16, to the nearest, of two equally near ones the even."""
    words = wide.view(np.uint32)
    for column in range(len(halves)):
        word = words[column]
        rounded = np.uint32(word + np.uint32(0x7FFF) + (word >> np.uint32(16) & np.uint32(1)))
        # What is behind infinity is NaN, which rounding up could turn into a number.
        is_nan = (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        halves[column] = np.uint16(0x7FC0) if is_nan else np.uint16(rounded >> np.uint32(16))


@njit(nogil=True)
def _add_up(layer: Any) -> None:
    """Each token's entries, scaled, by expert, added up in the place of the first of them."""
    width = layer.width
    rows = carray(array_at(layer.rows), layer.routes, np.int64)
    places = carray(array_at(layer.places), layer.routes, np.int64)
    results = carray(array_at(layer.down.result), (layer.routes, width), np.float32)
    token = _take(layer, ADD_UP)
    while token < layer.tokens:
        first = -1
        for entry in range(layer.routes):
            if rows[entry] != token:
                continue
            weight = _weight_of(layer, places[entry])
            if first < 0:
                first = entry
                for column in range(width):
                    results[first, column] = weight * results[entry, column]
            else:
                for column in range(width):
                    results[first, column] += weight * results[entry, column]
        if layer.narrow_hidden:
            halves = carray(array_at(layer.output + 2 * token * width), width, np.uint16)
            if first < 0:
                halves[:] = 0
            else:
                _narrow(results[first], halves)
        else:
            wide = carray(array_at(layer.output + 4 * token * width), width, np.float32)
            if first < 0:
                wide[:] = 0
            else:
                wide[:] = results[first]
        token = _take(layer, ADD_UP)


@njit(nogil=True)
def _float32_layer(layer: Any) -> None:
    _sort(layer)
    _gather(layer, 32, 0)
    up = carray(array_at(layer.up.weights), 1, np.float32)
    values = carray(array_at(layer.up.values), 1, np.float32)
    _multiply(layer, layer.up, UP, up, values, up, values, 0, False)
    _activate(layer, 32, 0)
    down = carray(array_at(layer.down.weights), 1, np.float32)
    hidden = carray(array_at(layer.down.values), 1, np.float32)
    _multiply(layer, layer.down, DOWN, down, hidden, down, hidden, 0, False)
    _add_up(layer)


@njit(nogil=True)
def _bfloat16_layer(layer: Any) -> None:
    _sort(layer)
    _gather(layer, 32, 0)
    up = carray(array_at(layer.up.weights), 1, np.uint16)
    values = carray(array_at(layer.up.values), 1, np.float32)
    _multiply(layer, layer.up, UP, up, values, up, values, 0, False)
    _activate(layer, 32, 0)
    down = carray(array_at(layer.down.weights), 1, np.uint16)
    hidden = carray(array_at(layer.down.values), 1, np.float32)
    _multiply(layer, layer.down, DOWN, down, hidden, down, hidden, 0, False)
    _add_up(layer)


@njit(nogil=True)
def _int8_layer(layer: Any) -> None:
    _sort(layer)
    _gather(layer, 8, 0)
    up = carray(array_at(layer.up.weights), 1, np.int8)
    values = carray(array_at(layer.up.values), 1, np.int16)
    _multiply(layer, layer.up, UP, up, values, up, values, 0, True)
    _activate(layer, 8, 0)
    down = carray(array_at(layer.down.weights), 1, np.int8)
    hidden = carray(array_at(layer.down.values), 1, np.int16)
    _multiply(layer, layer.down, DOWN, down, hidden, down, hidden, 0, True)
    _add_up(layer)


@njit(nogil=True)
def _int4_layer(layer: Any, group: int) -> None:
    group = literally(group)
    _sort(layer)
    _gather(layer, 4, group)
    _multiply_int4(layer, layer.up, UP, group)
    _activate(layer, 4, group)
    _multiply_int4(layer, layer.down, DOWN, group)
    _add_up(layer)


@njit(nogil=True)
def _multiply_int4(layer: Any, job: Any, phase: int, group: int) -> None:
    group = literally(group)
    weights = carray(array_at(job.weights), 1, np.uint8)
    values = carray(array_at(job.values), 1, np.int8)
    scales = carray(array_at(job.weight_scales), 1, np.uint16)
    factors = carray(array_at(job.value_scales), 1, np.float32)
    _multiply(layer, job, phase, weights, values, scales, factors, group, False)


def _float32_work(sources: int) -> Any:
    def work(address: Any) -> None:
        if sources:
            _float32_layer(carray(address, 1, LAYER)[0])

    return work


def _bfloat16_work(sources: int) -> Any:
    def work(address: Any) -> None:
        if sources:
            _bfloat16_layer(carray(address, 1, LAYER)[0])

    return work


def _int8_work(sources: int) -> Any:
    def work(address: Any) -> None:
        if sources:
            _int8_layer(carray(address, 1, LAYER)[0])

    return work


def _int4_32_work(sources: int) -> Any:
    def work(address: Any) -> None:
        if sources:
            _int4_layer(carray(address, 1, LAYER)[0], 32)

    return work


def _int4_128_work(sources: int) -> Any:
    def work(address: Any) -> None:
        if sources:
            _int4_layer(carray(address, 1, LAYER)[0], 128)

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
def compiled_layer(kind: str) -> Any:
    """What a thread runs for a layer whose weights are of a kind of `runtime.kernels.expert_rows.run_job`."""
    work = _WORK[kind](digest_of_sources(vector_tiles, expert_rows, few_tokens))
    return cfunc(types.void(types.voidptr), cache=True)(work)
