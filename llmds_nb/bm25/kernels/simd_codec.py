"""The bit planes of a block of 128 postings as vector code in portable LLVM IR (block_codec.py).

Plain loops over slices cost twice the time: LLVM checks at each whether the arrays overlap, and
finds no vector form of a prefix sum.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..._core.llvm import halved, ints, pick, spread

_LANES = 16
_CHUNKS = 128 // _LANES
_BYTE, _INT, _WORD = (ir.IntType(bits) for bits in (8, 32, 64))
_VECTOR = ints(32, _LANES)


def _same(value):
    return ir.Constant(_VECTOR, [value] * _LANES)


def _bytes_at(builder, data, offset):
    """The bytes at data + offset as int32 lanes."""
    place = builder.bitcast(builder.gep(data, [_WORD(offset)]), ints(8, _LANES).as_pointer())
    return builder.zext(builder.load(place, align=1), _VECTOR)


def _chunks(context, builder, kind, array):
    """The pointers to the vectors of an int32[128] array."""
    data = context.make_array(kind)(context, builder, array).data
    data = builder.bitcast(data, _VECTOR.as_pointer())
    return [builder.gep(data, [_WORD(chunk)]) for chunk in range(_CHUNKS)]


def _data_of(context, builder, signature, args):
    """The pointer to data[position], being the second and third argument."""
    data = context.make_array(signature.args[1])(context, builder, args[1]).data
    return builder.gep(data, [args[2]])


def _total(builder, vector):
    """The sum of the lanes, as int32."""
    while vector.type.count > 1:
        vector = halved(builder, vector)
    return builder.extract_element(vector, _INT(0))


def _planes_of(builder, planes, data):
    """A function of chunk that gives what the planes at `data` hold of its gaps.

    Nothing branches: a plane that is absent reads zeros, since which ones there are is hard to
    predict, and costs more than all of them.
    """
    nothing = cgutils.global_constant(builder, "no_plane", ir.Constant(
        ir.ArrayType(_BYTE, 128), [0] * 128))  # fmt: skip
    nothing = builder.bitcast(nothing, _BYTE.as_pointer())
    n_bytes = builder.lshr(planes, _WORD(3))
    has_byte = builder.icmp_unsigned("!=", n_bytes, _WORD(0))
    has_nibbles, has_pairs = (
        builder.icmp_unsigned("!=", builder.and_(planes, _WORD(bit)), _WORD(0)) for bit in (4, 2)
    )
    low = builder.select(has_byte, data, nothing)
    data = builder.gep(data, [builder.mul(n_bytes, _WORD(128))])
    nibbles = builder.select(has_nibbles, data, nothing)
    data = builder.gep(data, [builder.select(has_nibbles, _WORD(64), _WORD(0))])
    pairs = builder.select(has_pairs, data, nothing)
    shift = builder.trunc(builder.mul(n_bytes, _WORD(8)), _INT)
    parts = [(nibbles, 4, spread(builder, shift, _LANES))]
    shift = builder.add(shift, builder.select(has_nibbles, _INT(4), _INT(0)))
    parts.append((pairs, 2, spread(builder, shift, _LANES)))

    def gaps(chunk):
        value = _bytes_at(builder, low, chunk * _LANES)
        for plane, bits, shift in parts:
            turn, place = divmod(chunk * _LANES, 128 * bits // 8)
            some = builder.lshr(_bytes_at(builder, plane, place), _same(turn * bits))
            some = builder.and_(some, _same((1 << bits) - 1))
            value = builder.add(value, builder.shl(some, shift))
        return value

    return gaps


def _rows_sum(context, builder, signature, args):
    planes, row = args[3:]
    gaps = _planes_of(builder, planes, _data_of(context, builder, signature, args))
    carry = spread(builder, builder.trunc(builder.sub(row, _WORD(1)), _INT), _LANES)
    before = builder.trunc(row, _INT)
    high = _same(0)
    for chunk, place in enumerate(_chunks(context, builder, signature.args[0], args[0])):
        value = builder.add(builder.load(place, align=4), gaps(chunk))
        high = builder.add(high, builder.lshr(value, _same(16)))
        step = 1
        while step < _LANES:
            lanes = [_LANES - step + lane for lane in range(_LANES)]
            value = builder.add(value, pick(builder, _same(0), value, lanes))
            step *= 2
        value = builder.add(value, carry)
        builder.store(value, place, align=4)
        carry = pick(builder, value, value, [_LANES - 1] * _LANES)
    # The sum of 128 lower halves is less than 2**32, so the last row tells it.
    high = builder.shl(builder.zext(_total(builder, high), _WORD), _WORD(16))
    last = builder.add(builder.extract_element(carry, _INT(0)), _INT(1))
    low = builder.sub(builder.sub(last, before), builder.trunc(high, _INT))
    return builder.add(builder.add(row, high), builder.zext(low, _WORD))


def _bits_spread(context, builder, signature, args):
    bits = _bytes_at(builder, _data_of(context, builder, signature, args), 0)
    for chunk, place in enumerate(_chunks(context, builder, signature.args[0], args[0])):
        bit = builder.and_(builder.lshr(bits, _same(chunk)), _same(1))
        builder.store(builder.add(bit, _same(1)), place, align=4)
    return context.get_dummy_value()


@intrinsic
def rows_sum(typingctx, rows, data, position, planes, row):
    """Turn parts of 128 gaps + 1 in rows, an int32 or uint32 array, into rows.

    To each is added what the first byte plane, the nibbles and the pairs of a block hold, which
    begins at data[position] and has the planes of its header, less than 32; then all are summed up,
    from row - 1 on, without a carry beyond 32 bits. Return row + their sum as uint64, exact: if
    that is less than 2**32, no row is larger or was cut.
    """
    _four_bytes(rows)
    kind = types.uint64(rows, data, types.uint64, types.uint64, types.uint64)
    return kind, _rows_sum


@intrinsic
def bits_spread(typingctx, tfs, data, position):
    """tfs[i], of 128 int32 or uint32, is 1 + bit i // 16 of data[position + i % 16]."""
    _four_bytes(tfs)
    return types.void(tfs, data, types.uint64), _bits_spread


def _four_bytes(array):
    if array.dtype not in (types.int32, types.uint32):
        raise TypeError(f"rows and tfs must be int32 or uint32, not {array.dtype}")
