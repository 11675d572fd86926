"""Scratch arrays of a kernel: one allocation, cut into arrays that count no references.

>>> import numba, numpy as np
>>> @numba.njit
... def total(n):
...     parts = (n, np.int64), ((2, n), np.float32)
...     memory = scratch(parts)
...     whole, pairs = cut(memory, parts)
...     whole[:] = 1
...     pairs[:] = 2
...     result = whole.sum() + pairs.sum()
...     keep_alive(memory)
...     return result
>>> total(3)
15.0

The arrays do not own the memory: `keep_alive` is called behind their last use. Without it Numba
frees the memory after the call of `cut`.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .llvm import array_value

_ALIGN = 32  # bytes, as arrays of Numba; vector loads of scratch then cross no cache line
_WORD = ir.IntType(64)


def _layouts(context, builder, parts, value):
    """For each part its Numba dtype, lengths and bytes, rounded up to _ALIGN."""
    found = []
    for part, member in zip(parts, cgutils.unpack_tuple(builder, value), strict=True):
        shape = builder.extract_value(member, 0)
        several = isinstance(part[0], types.BaseTuple)
        kinds = part[0].types if several else [part[0]]
        lengths = cgutils.unpack_tuple(builder, shape) if several else [shape]
        lengths = [
            context.cast(builder, length, kind, types.int64)
            for kind, length in zip(kinds, lengths, strict=True)
        ]
        dtype = part[1].dtype
        size = _WORD(context.get_abi_sizeof(context.get_data_type(dtype)))
        for length in lengths:
            size = builder.mul(size, length)
        size = builder.and_(builder.add(size, _WORD(_ALIGN - 1)), _WORD(-_ALIGN))
        found.append((dtype, lengths, size))
    return found


@intrinsic
def scratch(typingctx, parts):
    """Memory uint8[n] for the parts, a tuple of (length or tuple of lengths, dtype). O(1)."""
    memory = types.Array(types.uint8, 1, "C")

    def codegen(context, builder, signature, args):
        total = _WORD(0)
        for _, _, size in _layouts(context, builder, signature.args[0], args[0]):
            total = builder.add(total, size)
        align = ir.Constant(ir.IntType(32), _ALIGN)
        owner = context.nrt.meminfo_alloc_aligned(builder, total, align)  # or MemoryError
        pointer = context.nrt.meminfo_data(builder, owner)
        return array_value(context, builder, memory, pointer, [total], owner)

    return memory(parts), codegen


@intrinsic
def cut(typingctx, memory, parts):
    """The arrays of the parts, one behind the other in memory of `scratch(parts)`. O(1)."""
    kinds = []
    for part in parts:
        n_dims = len(part[0]) if isinstance(part[0], types.BaseTuple) else 1
        kinds.append(types.Array(part[1].dtype, n_dims, "C"))
    result = types.BaseTuple.from_types(kinds)

    def codegen(context, builder, signature, args):
        place = context.make_array(signature.args[0])(context, builder, args[0]).data
        arrays = []
        for kind, (_, lengths, size) in zip(
            kinds, _layouts(context, builder, signature.args[1], args[1]), strict=True
        ):
            arrays.append(array_value(context, builder, kind, place, lengths))
            place = builder.gep(place, [size])
        return context.make_tuple(builder, result, arrays)

    return result(memory, parts), codegen


@intrinsic
def keep_alive(typingctx, array):
    """Keep an array's memory allocated up to here. O(1)."""
    return types.void(array), lambda context, builder, signature, args: context.get_dummy_value()
