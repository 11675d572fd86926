"""SIMD in portable LLVM IR: the planes of postings blocks (block_codec.py), and bounds of scores.

Plain loops over the planes take twice as long: LLVM checks at each loop whether the arrays overlap,
and it does not vectorise a prefix sum. Nor does it turn a plain loop over bounds into a bit mask:
it would write one byte for each comparison.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..._core.llvm import halved, ints, pick, spread

LANES = 64  # bounds compared at a time, the bits of a mask
_LANES = 16
_CHUNKS = 128 // _LANES
_BYTE, _INT, _WORD = (ir.IntType(bits) for bits in (8, 32, 64))
_VECTOR, _BOUNDS = ints(32, _LANES), ints(16, LANES)


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
    """A function that gives, for chunk i of 16 gaps, the bits that the planes at `data` hold.

    A plane that the block does not have is read as zeros instead of branching: which planes there
    are is hard to predict, and a misprediction costs more than reading all of them.
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
            group, offset = divmod(chunk * _LANES, 128 * bits // 8)
            part = builder.lshr(_bytes_at(builder, plane, offset), _same(group * bits))
            part = builder.and_(part, _same((1 << bits) - 1))
            value = builder.add(value, builder.shl(part, shift))
        return value

    return gaps


def _gaps_sum(context, builder, signature, args):
    planes, doc = args[3:]
    gaps = _planes_of(builder, planes, _data_of(context, builder, signature, args))
    carry = spread(builder, builder.trunc(builder.sub(doc, _WORD(1)), _INT), _LANES)
    before = builder.trunc(doc, _INT)
    high = _same(0)
    for chunk, pointer in enumerate(_chunks(context, builder, signature.args[0], args[0])):
        value = builder.add(builder.load(pointer, align=4), gaps(chunk))
        high = builder.add(high, builder.lshr(value, _same(16)))
        step = 1
        while step < _LANES:
            lanes = [_LANES - step + lane for lane in range(_LANES)]
            value = builder.add(value, pick(builder, _same(0), value, lanes))
            step *= 2
        value = builder.add(value, carry)
        builder.store(value, pointer, align=4)
        carry = pick(builder, value, value, [_LANES - 1] * _LANES)
    # The lower halves of 128 gaps sum to less than 2**32, so the last document number, which is
    # that sum modulo 2**32, has all of it.
    high = builder.shl(builder.zext(_total(builder, high), _WORD), _WORD(16))
    last = builder.add(builder.extract_element(carry, _INT(0)), _INT(1))
    low = builder.sub(builder.sub(last, before), builder.trunc(high, _INT))
    return builder.add(builder.add(doc, high), builder.zext(low, _WORD))


def _tfs_decode(context, builder, signature, args):
    bits = _bytes_at(builder, _data_of(context, builder, signature, args), 0)
    for chunk, pointer in enumerate(_chunks(context, builder, signature.args[0], args[0])):
        bit = builder.and_(builder.lshr(bits, _same(chunk)), _same(1))
        builder.store(builder.add(bit, _same(1)), pointer, align=4)
    return context.get_dummy_value()


@intrinsic
def gaps_sum(typingctx, docs, data, position, planes, doc):
    """Turn 128 gaps into document numbers, in place: a prefix sum modulo 2**32.

    docs, int32 or uint32, holds for each gap 1 + the bits that are in no plane handled here. Added
    are the bits in the first byte plane, the nibble plane and the pair plane of the block whose
    planes begin at data[position] and are those of the header byte `planes` < 32. The sum starts at
    doc - 1. Return doc + the sum of all as uint64, exact: where that is less than 2**32 nothing has
    overflown.
    """
    _check_dtype(docs, types.int32, types.uint32)
    kind = types.uint64(docs, data, types.uint64, types.uint64, types.uint64)
    return kind, _gaps_sum


@intrinsic
def tfs_decode(typingctx, tfs, data, position):
    """tfs[i] = 1 + bit i // 16 of data[position + i % 16], for 128 int32 or uint32."""
    _check_dtype(tfs, types.int32, types.uint32)
    return types.void(tfs, data, types.uint64), _tfs_decode


def _at(builder, data, offset):
    """The pointer to the vector of bounds that begins at data[offset]."""
    return builder.bitcast(builder.gep(data, [offset]), _BOUNDS.as_pointer())


def _threshold_mask(context, builder, signature, args):
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    threshold = spread(builder, args[2], LANES)
    bounds = builder.load(_at(builder, data, args[1]), align=2)
    return builder.bitcast(builder.icmp_unsigned(">=", bounds, threshold), _WORD)


def _columns_max(context, builder, signature, args):
    data, out = (
        context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 4)
    )
    first, strips, width = args[1:4]
    largest = cgutils.alloca_once_value(builder, ir.Constant(_BOUNDS, [0] * LANES))
    with cgutils.for_range(builder, strips) as loop:
        offset = builder.add(first, builder.mul(loop.index, width))
        bounds, before = builder.load(_at(builder, data, offset), align=2), builder.load(largest)
        larger = builder.icmp_unsigned(">", bounds, before)
        builder.store(builder.select(larger, bounds, before), largest)
    builder.store(builder.load(largest), _at(builder, out, first), align=2)
    return context.get_dummy_value()


@intrinsic
def threshold_mask(typingctx, bounds, at, threshold):
    """uint64 whose bit i is bounds[at + i] >= threshold; bounds uint16[>= at + 64]."""
    _check_dtype(bounds, types.uint16)
    return types.uint64(bounds, types.intp, types.uint16), _threshold_mask


@intrinsic
def columns_max(typingctx, bounds, at, strips, width, out):
    """out[at + i] = the largest of bounds[at + i + strip * width], for i < 64; both are uint16."""
    _check_dtype(bounds, types.uint16)
    _check_dtype(out, types.uint16)
    return types.void(bounds, types.intp, types.intp, types.intp, out), _columns_max


def _check_dtype(array, *dtypes):
    if array.dtype not in dtypes:
        raise TypeError(f"an array must be {' or '.join(map(str, dtypes))}, not {array.dtype}")
