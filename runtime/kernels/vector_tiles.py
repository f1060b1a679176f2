"""Products of a few rows of weights with a few tokens, kept in vector registers, to be called from Numba.

A tile multiplies R rows of a weight matrix with N tokens. Each weight is loaded and widened once for all N tokens,
each token's value once for all R rows, and the R · N sums stay in registers until the columns are through. Numba's own
vectoriser cannot be told to do that, so the inner loop is written in LLVM's vector types, which it translates for
whatever processor there is.

All arrays are flat and contiguous; rows and tokens are found by an offset and a stride in elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic

intrinsic: Any = _intrinsic
"""Untyped, because compiled code calls an intrinsic without its first argument."""

LANES = 8
"""float32 numbers of a vector: what AVX2 has, and what others put together from halves."""

INT = ir.IntType(64)
FLOAT = ir.FloatType()
FLOATS = ir.VectorType(FLOAT, LANES)
INTS32 = ir.VectorType(ir.IntType(32), LANES)
INTS16 = ir.VectorType(ir.IntType(16), 2 * LANES)
BYTES = ir.VectorType(ir.IntType(8), 4 * LANES)
FUSED = ("contract",)

ROWS = {1: 4, 2: 4, 3: 3, 4: 3}
"""Rows of a tile by its tokens: so many that their sums fill up to twelve of sixteen registers."""

INT8_ROWS = {1: 4, 2: 4, 3: 3, 4: 2}
"""The same for int8, where the values of all four tokens stay in registers beside the sums."""

INT4_ROWS = {1: 4, 2: 1, 3: 1, 4: 1}
"""The same for int4, where the unpacked codes of one row need registers too."""

Step = Callable[[Any, list[Any]], list[Any]]
"""What one turn over the columns makes of the sums: column, sums before, sums after."""


@intrinsic(prefer_literal=True)
def multiply_strip(
    typing_context: Any,  # noqa: ARG001
    tokens: Any,
    group: Any,
    first_row: Any,  # noqa: ARG001
    last_row: Any,  # noqa: ARG001
    columns: Any,  # noqa: ARG001
    weights: Any,
    weight: Any,  # noqa: ARG001
    weight_stride: Any,  # noqa: ARG001
    values: Any,
    value: Any,  # noqa: ARG001
    value_stride: Any,  # noqa: ARG001
    sums: Any,
    sum_at: Any,  # noqa: ARG001
    sum_stride: Any,  # noqa: ARG001
    scales: Any,
    scale: Any,  # noqa: ARG001
    scale_stride: Any,  # noqa: ARG001
    factors: Any,
    factor: Any,  # noqa: ARG001
    factor_stride: Any,  # noqa: ARG001
) -> Any:
    """Add the products of rows ``[first_row, last_row)`` with a few tokens to their sums, tile by tile.

    For ``r`` of these rows and ``t < tokens``, all offsets and strides in elements::

        sums[sum_at + t · sum_stride + r] += Σ_c w(r, c) · values[value + t · value_stride + c]

    over ``c < columns``, where ``w(r, c)`` depends on the dtype of `weights`:

    - float32: ``weights[weight + r · weight_stride + c]``, with float32 values. Columns after the last multiple of 8
      are left out.
    - uint16: the same in bfloat16, with float32 values.
    - int8: the same, with int16 values and a multiple of 16 columns; exact while the sums of every 16th column fit
      into int32, see `runtime.kernels.expert_rows.COLUMNS_OF_BLOCK`.
    - uint8: int4 codes, packed as `runtime.expert_weights` says, times the bfloat16
      ``scales[scale + r · scale_stride + c // group]``; int8 values, a multiple of `group` and of 64 columns. Values
      have a scale for each group too: ``factors[factor + t · factor_stride + 2 · (c // group)]``, and behind it the
      group's sum of values times that scale, negative, which takes back that codes are stored 8 too high.

    `tokens`, at most 4, and `group`, the columns that share a scale, are literals.
    """
    if not isinstance(tokens, types.IntegerLiteral) or not isinstance(group, types.IntegerLiteral):
        return None
    by_tokens = {types.uint8: INT4_ROWS, types.int8: INT8_ROWS}.get(weights.dtype, ROWS)
    rows = by_tokens[tokens.literal_value]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = {
            name: context.make_array(signature.args[place])(context, builder, arguments[place]).data
            for name, place in (("weights", 5), ("values", 8), ("sums", 11), ("scales", 14), ("factors", 17))
        }
        token_starts = _starts(builder, data["values"], arguments[9], arguments[10], tokens.literal_value)

        def tile(row: Any, height: int, apart: Any) -> None:
            begin = builder.add(arguments[6], builder.mul(row, arguments[7]))
            row_starts = _starts(builder, data["weights"], begin, builder.mul(arguments[7], apart), height)
            if weights.dtype == types.int8:
                kind, step_columns, step = INTS32, 2 * LANES, _int8_step(builder, row_starts, token_starts)
            elif weights.dtype == types.uint8:
                begin = builder.add(arguments[15], builder.mul(row, arguments[16]))
                scale_stride = builder.mul(arguments[16], apart)
                scale_starts = _starts(builder, data["scales"], begin, scale_stride, height)
                factor_starts = _starts(
                    builder, data["factors"], arguments[18], arguments[19], tokens.literal_value
                )
                size = group.literal_value
                kind, step_columns = FLOATS, max(size, 64)
                has_avx2 = "+avx2" in context.codegen().magic_tuple()[2]
                step = _int4_step(
                    builder, row_starts, token_starts, scale_starts, factor_starts, size, has_avx2
                )
            else:
                load = _load_float32 if weights.dtype == types.float32 else _load_bfloat16
                kind, step_columns, step = FLOATS, LANES, _float_step(builder, row_starts, token_starts, load)
            count = height * tokens.literal_value
            for place, total in enumerate(
                _over_columns(builder, arguments[4], step_columns, kind, count, step)
            ):
                # Converted before the lanes are added: the sum of all may not fit into int32.
                vector = builder.sitofp(total, FLOATS) if kind is INTS32 else total
                t, r = divmod(place, height)
                target = builder.add(arguments[12], builder.mul(arguments[13], INT(t)))
                at = builder.add(builder.add(target, row), builder.mul(apart, INT(r)))
                target = builder.gep(data["sums"], [at])
                builder.store(builder.fadd(builder.load(target), _sum_lanes(builder, vector)), target)

        # The rows of a tile are far apart, and its next rows follow them directly: each is a stream of memory of its
        # own, which the processor can read ahead. Neighbouring rows would be streams that end where the next begins.
        apart = builder.sdiv(builder.sub(arguments[3], arguments[2]), INT(rows))
        end = builder.add(arguments[2], apart)
        with cgutils.for_range_slice(builder, arguments[2], end, INT(1)) as (row, _):
            tile(row, rows, apart)
        rest = builder.add(arguments[2], builder.mul(apart, INT(rows)))
        with cgutils.for_range_slice(builder, rest, arguments[3], INT(1)) as (row, _):
            tile(row, 1, INT(1))
        return context.get_dummy_value()

    place = (types.int64, types.int64)
    arguments = (weights, *place, values, *place, sums, *place, scales, *place, factors, *place)
    return types.void(tokens, group, types.int64, types.int64, types.int64, *arguments), generate


def _float_step(
    builder: Any, row_starts: list[Any], token_starts: list[Any], load: Callable[..., Any]
) -> Step:
    def step(column: Any, before: list[Any]) -> list[Any]:
        after = []
        loaded = [load(builder, builder.gep(start, [column])) for start in row_starts]
        for t, start in enumerate(token_starts):
            value = _load_float32(builder, builder.gep(start, [column]))
            for r, weight in enumerate(loaded):
                product = builder.fmul(weight, value, flags=FUSED)
                after.append(builder.fadd(product, before[t * len(loaded) + r], flags=FUSED))
        return after

    return step


def _int8_step(builder: Any, row_starts: list[Any], token_starts: list[Any]) -> Step:
    narrow = ir.VectorType(ir.IntType(8), 2 * LANES)

    def step(column: Any, before: list[Any]) -> list[Any]:
        after = []
        loaded = [
            builder.sext(_load(builder, builder.gep(start, [column]), narrow, 1), INTS16)
            for start in row_starts
        ]
        for t, start in enumerate(token_starts):
            value = _load(builder, builder.gep(start, [column]), INTS16, 2)
            for r, weight in enumerate(loaded):
                pairs = _multiply_and_add_pairs(builder, weight, value)
                after.append(builder.add(before[t * len(loaded) + r], pairs))
        return after

    return step


def _int4_step(
    builder: Any,
    row_starts: list[Any],
    token_starts: list[Any],
    scale_starts: list[Any],
    factor_starts: list[Any],
    group: int,
    has_avx2: bool,
) -> Step:
    def step(column: Any, before: list[Any]) -> list[Any]:
        after = list(before)
        for first in range(0, max(group, 64), group):
            begin = builder.add(column, INT(first))
            place = builder.sdiv(begin, INT(group))
            for r, (row, scales) in enumerate(zip(row_starts, scale_starts, strict=True)):
                weights = _unpacked(builder, row, column, first, group)
                scale = builder.load(builder.gep(scales, [place]))
                weight_factor = _splat_value(builder, _widen_bfloat16(builder, scale))
                for t, (start, factors) in enumerate(zip(token_starts, factor_starts, strict=True)):
                    total = ir.Constant(INTS16, None)
                    for part, weight in enumerate(weights):
                        here = builder.gep(start, [builder.add(begin, INT(part * 4 * LANES))])
                        value = _load(builder, here, BYTES, 1)
                        pairs = _multiply_and_add_bytes(builder, weight, value, has_avx2)
                        # At most 4 · 2 · 15 · 127, which fits into int16.
                        total = builder.add(total, pairs)
                    value_factor, shift = (
                        _splat_value(builder, builder.load(builder.gep(factors, [at])))
                        for doubled in [builder.mul(place, INT(2))]
                        for at in (doubled, builder.add(doubled, INT(1)))
                    )
                    whole = builder.sitofp(_add_pairs(builder, total), FLOATS)
                    shifted = builder.fadd(builder.fmul(whole, value_factor, flags=FUSED), shift, flags=FUSED)
                    at = t * len(row_starts) + r
                    product = builder.fmul(shifted, weight_factor, flags=FUSED)
                    after[at] = builder.fadd(product, after[at], flags=FUSED)
        return after

    return step


@intrinsic
def array_at(typing_context: Any, address: Any) -> Any:  # noqa: ARG001
    """``array_at(address)``: an int64 as the pointer that `numba.carray` takes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.int64), generate


@intrinsic
def take_next(typing_context: Any, counter: Any) -> Any:  # noqa: ARG001
    """``take_next(counter)``: the int64 at a pointer, which is one more for whoever asks next, on any thread."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        address = builder.bitcast(arguments[0], INT.as_pointer())
        # What was written before is seen by whoever reads the new number.
        return builder.atomic_rmw("add", address, INT(1), "acq_rel")

    return types.int64(types.voidptr), generate


@intrinsic
def read_count(typing_context: Any, counter: Any) -> Any:  # noqa: ARG001
    """``read_count(counter)``: the int64 at a pointer, and sight of all that was written before it was counted up."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        address = builder.bitcast(arguments[0], INT.as_pointer())
        return builder.load_atomic(address, "acquire", 8)

    return types.int64(types.voidptr), generate


@intrinsic
def call_at(typing_context: Any, address: Any) -> Any:  # noqa: ARG001
    """``call_at(address)``: call the C function ``int f(void)`` at an int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        kind = ir.FunctionType(ir.IntType(32), []).as_pointer()
        builder.call(builder.inttoptr(arguments[0], kind), [])
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _starts(builder: Any, data: Any, offset: Any, stride: Any, count: int) -> list[Any]:
    return [
        builder.gep(data, [builder.add(offset, builder.mul(stride, INT(place)))]) for place in range(count)
    ]


def _over_columns(
    builder: Any, columns: Any, step_columns: int, kind: Any, count: int, step: Step
) -> list[Any]:
    """`count` sums of a kind, carried from 0 through all whole steps that fit into the columns."""
    end = builder.and_(columns, INT(-step_columns))
    entry = builder.block
    turn = builder.append_basic_block("columns")
    done = builder.append_basic_block("columns_done")
    zero = ir.Constant(kind, None)
    builder.cbranch(builder.icmp_signed("<", INT(0), end), turn, done)
    builder.position_at_end(turn)
    column = builder.phi(INT)
    before = [builder.phi(kind) for _ in range(count)]
    after = step(column, before)
    following = builder.add(column, INT(step_columns))
    builder.cbranch(builder.icmp_signed("<", following, end), turn, done)
    column.add_incoming(INT(0), entry)
    column.add_incoming(following, turn)
    for carried, value in zip(before, after, strict=True):
        carried.add_incoming(zero, entry)
        carried.add_incoming(value, turn)
    builder.position_at_end(done)
    results = []
    for value in after:
        result = builder.phi(kind)
        result.add_incoming(zero, entry)
        result.add_incoming(value, turn)
        results.append(result)
    return results


def _load_float32(builder: Any, address: Any) -> Any:
    return _load(builder, address, FLOATS, 4)


def _load_bfloat16(builder: Any, address: Any) -> Any:
    """bfloat16, seen as uint16, is the upper half of a float32."""
    halves = _load(builder, address, ir.VectorType(ir.IntType(16), LANES), 2)
    return builder.bitcast(builder.shl(builder.zext(halves, INTS32), _splat(INTS32, 16)), FLOATS)


def _load(builder: Any, address: Any, kind: Any, align: int) -> Any:
    return builder.load(builder.bitcast(address, kind.as_pointer()), align=align)


def _splat(kind: Any, number: int) -> Any:
    return ir.Constant(kind, [number] * kind.count)


def _splat_value(builder: Any, value: Any) -> Any:
    first = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, ir.Constant(FLOATS, ir.Undefined), ir.Constant(INTS32, None))


def _widen_bfloat16(builder: Any, half: Any) -> Any:
    word = ir.IntType(32)
    return builder.bitcast(builder.shl(builder.zext(half, word), word(16)), FLOAT)


def _unpacked(builder: Any, row: Any, column: Any, first: int, group: int) -> list[Any]:
    """uint8 codes of the columns from ``column + first``: 32 bytes to 64 columns, the low nibbles first."""
    unpacked = []
    for begin in range(first, first + group, 4 * LANES):
        block, high = divmod(begin, 64)
        address = builder.gep(row, [builder.add(builder.sdiv(column, INT(2)), INT(32 * block))])
        codes = _load(builder, address, BYTES, 1)
        unpacked.append(
            builder.lshr(codes, _splat(BYTES, 4)) if high else builder.and_(codes, _splat(BYTES, 15))
        )
    return unpacked


def _multiply_and_add_bytes(builder: Any, unsigned: Any, signed: Any, has_avx2: bool) -> Any:
    """int16 sums of neighbouring products of bytes.

    LLVM knows AVX2's instruction for it by the limits of int16 alone, which it leaves out where codes of 4 bits cannot
    reach them; so it is named.
    """
    if has_avx2:
        name, kind = "llvm.x86.avx2.pmadd.ub.sw", ir.FunctionType(INTS16, [BYTES, BYTES])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [unsigned, signed])
    undefined, products = ir.Constant(BYTES, ir.Undefined), []
    for parity in (0, 1):
        chosen = ir.Constant(ir.VectorType(ir.IntType(32), 2 * LANES), list(range(parity, 4 * LANES, 2)))
        one = builder.zext(builder.shuffle_vector(unsigned, undefined, chosen), INTS16)
        other = builder.sext(builder.shuffle_vector(signed, undefined, chosen), INTS16)
        products.append(builder.mul(one, other))
    return builder.add(*products)


def _add_pairs(builder: Any, numbers: Any) -> Any:
    """int32 sums of neighbouring int16 numbers."""
    return _multiply_and_add_pairs(builder, numbers, _splat(INTS16, 1))


def _multiply_and_add_pairs(builder: Any, one: Any, other: Any) -> Any:
    """int32 ``one[2i] · other[2i] + one[2i + 1] · other[2i + 1]``, in the form that LLVM knows as one instruction."""
    wide = ir.VectorType(ir.IntType(32), 2 * LANES)
    products = builder.mul(builder.sext(one, wide), builder.sext(other, wide))
    undefined = ir.Constant(wide, ir.Undefined)
    even = builder.shuffle_vector(products, undefined, ir.Constant(INTS32, list(range(0, 2 * LANES, 2))))
    odd = builder.shuffle_vector(products, undefined, ir.Constant(INTS32, list(range(1, 2 * LANES, 2))))
    return builder.add(even, odd)


def _sum_lanes(builder: Any, vector: Any) -> Any:
    reduce = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(FLOAT, [FLOAT, FLOATS]), f"llvm.vector.reduce.fadd.v{LANES}f32"
    )
    return builder.call(reduce, [ir.Constant(FLOAT, -0.0), vector], fastmath=("reassoc",))
