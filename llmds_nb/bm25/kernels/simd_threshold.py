"""Which of 64 uint16 marks reach a bar, as bits, and the largest of columns: portable LLVM IR.

From a loop LLVM makes no bits: it would write a byte for each mark.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..._core.llvm import ints, spread

BITS = 64  # marks that are looked at together

_MARKS = ints(16, BITS)
_INT, _WORD = ir.IntType(32), ir.IntType(64)


def _at(builder, data, offset):
    """The pointer to the vector of marks that begins at data[offset]."""
    return builder.bitcast(builder.gep(data, [offset]), _MARKS.as_pointer())


def _reach_bits(context, builder, signature, args):
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    bar = spread(builder, args[2], BITS)
    marks = builder.load(_at(builder, data, args[1]), align=2)
    return builder.bitcast(builder.icmp_unsigned(">=", marks, bar), _WORD)


def _columns_most(context, builder, signature, args):
    data, out = (
        context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 4)
    )
    first, strips, width = args[1:4]
    most = cgutils.alloca_once_value(builder, ir.Constant(_MARKS, [0] * BITS))
    with cgutils.for_range(builder, strips) as loop:
        offset = builder.add(first, builder.mul(loop.index, width))
        marks, before = builder.load(_at(builder, data, offset), align=2), builder.load(most)
        larger = builder.icmp_unsigned(">", marks, before)
        builder.store(builder.select(larger, marks, before), most)
    builder.store(builder.load(most), _at(builder, out, first), align=2)
    return context.get_dummy_value()


@intrinsic
def reach_bits(typingctx, marks, at, bar):
    """Bit i of the uint64 says whether marks[at + i] >= bar; marks uint16[>= at + 64]."""
    _two_bytes(marks)
    return types.uint64(marks, types.intp, types.uint16), _reach_bits


@intrinsic
def columns_most(typingctx, marks, at, strips, width, out):
    """out[at + i] is the largest of marks[at + i + strip * width], i < 64; both are uint16."""
    _two_bytes(marks)
    _two_bytes(out)
    return types.void(marks, types.intp, types.intp, types.intp, out), _columns_most


def _two_bytes(array):
    if array.dtype != types.uint16:
        raise TypeError(f"marks must be uint16, not {array.dtype}")
