"""Asks the processor to bring memory into its caches ahead of use, from within Numba kernels."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LINE_BYTES = 64
"""What one request brings in."""
READ, KEEP_IN_ALL_CACHES, DATA = 0, 3, 1


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:  # noqa: ARG001
    """``prefetch(array, index)``: start to load the cache line of an element; harmless beyond the array's end."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        structure = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte_pointer = ir.IntType(8).as_pointer()
        address = builder.bitcast(builder.gep(structure.data, [arguments[1]]), byte_pointer)
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte_pointer], kind)
        hints = [ir.Constant(number, hint) for hint in (READ, KEEP_IN_ALL_CACHES, DATA)]
        builder.call(function, [address, *hints])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate
