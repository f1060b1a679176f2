"""Largest products of many rows of bytes with groups of tokens, also in bytes, by AVX2's products of bytes.

For terms ``j``, the tokens ``i`` of a group and columns ``c``, all whole numbers and exact::

    maxima[group, j] = max_i Σ_c tokens[i, c] · terms[j, c]

Tokens have codes 0 to `TOKEN_LIMIT`, terms codes of at most ± `TERM_LIMIT`: sums of eight products then fit into
int16, so that sums are widened to int32 once for four instructions that multiply, each of 32 products. Eight terms
stand in the lanes of a vector, so that no lanes are added, and the maximum over tokens stays in a register.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numpy.typing import NDArray

from runtime.kernels import vector_tiles
from runtime.kernels.kernel_sources import digest_of_sources
from runtime.kernels.vector_tiles import BYTES, INT, INTS32, LANES, intrinsic

TOKEN_LIMIT, TERM_LIMIT = 62, 63
COLUMNS = 16
"""Columns that are widened together."""

TILE = 8
"""Tokens whose sums are in registers together."""

TOKENS_OF_BLOCK = 768
"""Tokens that stay in the second cache while all terms pass by."""

SOURCES = digest_of_sources(vector_tiles)


def packed_terms(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """Codes ``[terms, columns]`` in the order the kernel reads: ``[panels, columns / 4, LANES, 4]``, zeros behind."""
    terms, columns = codes.shape
    panels = -(-terms // LANES)
    whole = np.zeros((panels * LANES, -(-columns // COLUMNS) * COLUMNS), np.int8)
    whole[:terms, :columns] = codes
    return np.ascontiguousarray(whole.reshape(panels, LANES, -1, 4).transpose(0, 2, 1, 3))


@intrinsic
def panel_maxima(
    typing_context: Any,  # noqa: ARG001
    tokens: Any,
    token: Any,  # noqa: ARG001
    last_token: Any,  # noqa: ARG001
    columns: Any,  # noqa: ARG001
    panels: Any,
    panel: Any,  # noqa: ARG001
    maxima: Any,
    maximum: Any,  # noqa: ARG001
) -> Any:
    """``panel_maxima(tokens, token, last_token, columns, panels, panel, maxima, maximum)``, all arrays flat.

    Raises the `LANES` int32 numbers from ``maxima[maximum]`` to the largest products of the terms of the panel that
    begins at ``panels[panel]`` with the tokens at ``tokens[t · columns]``, ``token <= t < last_token``. `columns` is a
    multiple of `COLUMNS`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = {
            name: context.make_array(signature.args[place])(context, builder, arguments[place]).data
            for name, place in (("tokens", 0), ("panels", 4), ("maxima", 6))
        }
        has_avx2 = "+avx2" in context.codegen().magic_tuple()[2]
        begin, end, columns = arguments[1:4]
        panel = builder.gep(data["panels"], [arguments[5]])
        target = builder.bitcast(builder.gep(data["maxima"], [arguments[7]]), INTS32.as_pointer())

        def tile(first: Any, count: int) -> None:
            starts = [
                builder.gep(data["tokens"], [builder.mul(builder.add(first, INT(t)), columns)])
                for t in range(count)
            ]

            def step(column: Any, before: list[Any]) -> list[Any]:
                terms = []
                for part in range(COLUMNS // 4):
                    at = builder.mul(builder.add(column, INT(4 * part)), INT(LANES))
                    address = builder.bitcast(builder.gep(panel, [at]), BYTES.as_pointer())
                    terms.append(builder.load(address, align=1))
                after = []
                for t, start in enumerate(starts):
                    total = None
                    for part, codes in enumerate(terms):
                        address = builder.gep(start, [builder.add(column, INT(4 * part))])
                        value = _four_everywhere(builder, address)
                        pairs = vector_tiles._multiply_and_add_bytes(builder, value, codes, has_avx2)
                        total = pairs if total is None else builder.add(total, pairs)
                    after.append(builder.add(before[t], vector_tiles._add_pairs(builder, total)))
                return after

            best = builder.load(target, align=4)
            for total in vector_tiles._over_columns(builder, columns, COLUMNS, INTS32, count, step):
                best = builder.select(builder.icmp_signed(">", total, best), total, best)
            builder.store(best, target, align=4)

        whole = builder.sub(end, builder.srem(builder.sub(end, begin), INT(TILE)))
        with cgutils.for_range_slice(builder, begin, whole, INT(TILE)) as (first, _):
            tile(first, TILE)
        with cgutils.for_range_slice(builder, whole, end, INT(1)) as (first, _):
            tile(first, 1)
        return context.get_dummy_value()

    whole = types.int64
    return types.void(tokens, whole, whole, whole, panels, whole, maxima, whole), generate


def _four_everywhere(builder: Any, address: Any) -> Any:
    """The four bytes at an address, in each of the eight places of a vector."""
    word = builder.load(builder.bitcast(address, ir.IntType(32).as_pointer()), align=1)
    undefined = ir.Constant(INTS32, ir.Undefined)
    first = builder.insert_element(undefined, word, ir.IntType(32)(0))
    return builder.bitcast(builder.shuffle_vector(first, undefined, ir.Constant(INTS32, None)), BYTES)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def raise_maxima(
    tokens: NDArray[np.uint8],
    starts: NDArray[np.int64],
    panels: NDArray[np.int8],
    maxima: NDArray[np.int32],
    first_panel: int,
    last_panel: int,
    sources: int = SOURCES,  # noqa: ARG001
) -> None:
    """Raise `maxima` to what the module says, for the terms of some panels.

    Args:
        tokens: ``[tokens, columns]``, contiguous; `columns` is a multiple of `COLUMNS`.
        starts: ``[groups + 1]``, where each group's tokens begin.
        panels: see `packed_terms`.
        maxima: ``[groups, panels · LANES]``, contiguous, changed.
    """
    columns, groups = tokens.shape[1], len(starts) - 1
    flat_tokens, flat_panels, flat_maxima = tokens.reshape(-1), panels.reshape(-1), maxima.reshape(-1)
    first = 0
    while first < groups:
        last = first + 1
        while last < groups and starts[last + 1] - starts[first] <= TOKENS_OF_BLOCK:
            last += 1
        for panel in range(first_panel, last_panel):
            for group in range(first, last):
                panel_maxima(
                    flat_tokens,
                    starts[group],
                    starts[group + 1],
                    columns,
                    flat_panels,
                    panel * columns * LANES,
                    flat_maxima,
                    group * maxima.shape[1] + panel * LANES,
                )
        first = last
