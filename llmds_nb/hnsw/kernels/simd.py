"""Vector instructions for codes, as portable LLVM IR: exact integer products and bit counts.

LLVM does not find these shapes in plain loops.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..._core.llvm import halved, ints, load_unaligned, pick

CODE_LANES = 32  # codes are padded to whole vectors of this many
CODE_ZERO = 128  # the code of 0 where codes are compared by dot products
CODE_ROWS = 4  # rows whose products are formed side by side
SIGN_LANES = 32  # bytes of sign codes are padded to whole vectors of this many
WORDS = 8  # int64 moved at once
BIT_PLANES = 4  # bits of a query component that is summed over sign codes


def _pair_sums(builder, factors, query, codes):
    """The products of CODE_LANES components, added in pairs: int32 lanes, half as many.

    LLVM does not find the multiply-add of adjacent int16 pairs (x86 pmaddwd, a quarter of the time
    of the plain loop at p = 128) in a loop, so its shape is spelled out, in portable IR.
    """
    q = load_unaligned(builder, query, ints(16, CODE_LANES))
    c = load_unaligned(builder, codes, ints(8, CODE_LANES))
    a, b = factors(builder, q, builder.zext(c, ints(16, CODE_LANES)))
    wide = ints(32, CODE_LANES)
    product = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    even, odd = (list(range(start, CODE_LANES, 2)) for start in (0, 1))
    return builder.add(pick(builder, product, product, even), pick(builder, product, product, odd))


def _arrays(context, builder, signature, args, *places):
    """The array arguments at these places."""
    return [context.make_array(signature.args[i])(context, builder, args[i]) for i in places]


def _in_steps(builder, size, step):
    """A loop over 0, step, ... below `size`."""
    zero, step = size.type(0), size.type(step)
    return cgutils.for_range_slice(builder, zero, size, step, inc=True)


def _zeros(builder, kind):
    return cgutils.alloca_once_value(builder, ir.Constant(kind, [0] * kind.count))


def _lanes_sum(builder, value):
    while value.type.count > 1:
        value = halved(builder, value)
    return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))


def _sum_products(factors):
    """int32(query int16[p], codes uint8[p]): the sum of factors(query, code), exact."""

    def codegen(context, builder, signature, args):
        query, codes = _arrays(context, builder, signature, args, 0, 1)
        total = _zeros(builder, ints(32, CODE_LANES // 2))
        size = cgutils.unpack_tuple(builder, codes.shape)[0]
        with _in_steps(builder, size, CODE_LANES) as (at, _):
            places = (builder.gep(data, [at]) for data in (query.data, codes.data))
            sums = _pair_sums(builder, factors, *places)
            builder.store(builder.add(builder.load(total), sums), total)
        return _lanes_sum(builder, builder.load(total))

    return intrinsic(lambda typingctx, query, codes: (types.int32(query, codes), codegen))


def _sum_products_rows(factors):
    """void(query, rows uint8[n, p], slots int32[m], at, keys int32[m], to).

    keys[to + r] is the sum of factors(query, code) for rows[slots[at + r]], r < CODE_ROWS: the rows
    share each load of the query, and the additions of lanes at the end.
    """

    def codegen(context, builder, signature, args):
        query, rows, slots, keys = _arrays(context, builder, signature, args, 0, 1, 2, 4)
        at, to = args[3], args[5]
        size = cgutils.unpack_tuple(builder, rows.shape)[1]
        stride = cgutils.unpack_tuple(builder, rows.strides)[0]
        starts, totals = [], []
        for r in range(CODE_ROWS):
            slot = builder.load(builder.gep(slots.data, [builder.add(at, at.type(r))]))
            slot = builder.zext(slot, stride.type)
            starts.append(builder.gep(rows.data, [builder.mul(slot, stride)]))
            totals.append(_zeros(builder, ints(32, CODE_LANES // 2)))
        with _in_steps(builder, size, CODE_LANES) as (j, _):
            place = builder.gep(query.data, [j])
            for start, total in zip(starts, totals, strict=True):
                sums = _pair_sums(builder, factors, place, builder.gep(start, [j]))
                builder.store(builder.add(builder.load(total), sums), total)
        values = [halved(builder, builder.load(total)) for total in totals]
        # Lanes 0 + 1 and 2 + 3 of the first four of both of a pair, then of the second: x86 phaddd.
        even = [base + i for half in (0, 4) for base in (half, 8 + half) for i in (0, 2)]
        odd = [lane + 1 for lane in even]
        while len(values) > 1:
            pairs = zip(values[::2], values[1::2], strict=True)
            values = [
                builder.add(pick(builder, *pair, even), pick(builder, *pair, odd)) for pair in pairs
            ]
        place = builder.bitcast(builder.gep(keys.data, [to]), ints(32, CODE_ROWS).as_pointer())
        builder.store(halved(builder, values[0]), place, align=4)
        return context.get_dummy_value()

    def sum_products_rows(typingctx, query, rows, slots, at, keys, to):
        if slots.dtype != types.int32 or keys.dtype != types.int32:
            raise TypeError(f"slots and keys must be int32, not {slots.dtype} and {keys.dtype}")
        return types.void(query, rows, slots, types.intp, keys, types.intp), codegen

    return intrinsic(sum_products_rows)


def _l2_factors(builder, q, c):
    difference = builder.sub(q, c)
    return difference, difference


def _dot_factors(builder, q, c):
    return q, builder.sub(c, ir.Constant(c.type, [CODE_ZERO] * CODE_LANES))


# Sums of (query - code)^2, and of query * (code - 128); p is a multiple of CODE_LANES.
code_l2, code_l2_rows = _sum_products(_l2_factors), _sum_products_rows(_l2_factors)
code_dot, code_dot_rows = _sum_products(_dot_factors), _sum_products_rows(_dot_factors)


@intrinsic
def bit_planes_distance(typingctx, planes, signs, row, weight, constant):
    """float32: square - gain (weight sum + constant) of signs[row].

    signs uint8[n, w]; a row ends with the square, int32, and the gain, float32. The sum is that of
    the signed numbers of BIT_PLANES bits whose bit is set in the row; plane i of planes
    uint8[BIT_PLANES, w] has bit i of each number, 0 in the bytes of the square and the gain. w is a
    multiple of SIGN_LANES.
    """

    def codegen(context, builder, signature, args):
        planes, signs = _arrays(context, builder, signature, args, 0, 1)
        words = ints(64, SIGN_LANES // 8)
        count = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(words, [words]), f"llvm.ctpop.v{words.count}i64"
        )
        width = cgutils.unpack_tuple(builder, planes.shape)[1]
        stride = cgutils.unpack_tuple(builder, signs.strides)[0]
        start = builder.gep(signs.data, [builder.mul(args[2], stride)])
        total = _zeros(builder, words)
        with _in_steps(builder, width, SIGN_LANES) as (at, _):
            bits = load_unaligned(builder, builder.gep(start, [at]), words)
            sums = None
            for i in reversed(range(BIT_PLANES)):
                plane = builder.add(at, builder.mul(width, width.type(i)))
                plane = load_unaligned(builder, builder.gep(planes.data, [plane]), words)
                found = builder.call(count, [builder.and_(bits, plane)])
                if sums is None:  # the highest bit of a negative number
                    sums = builder.neg(found)
                else:
                    sums = builder.add(builder.add(sums, sums), found)
            builder.store(builder.add(builder.load(total), sums), total)
        total = builder.sitofp(_lanes_sum(builder, builder.load(total)), ir.FloatType())
        end = builder.gep(start, [width])
        square = load_unaligned(builder, builder.gep(end, [width.type(-8)]), ir.IntType(32))
        gain = load_unaligned(builder, builder.gep(end, [width.type(-4)]), ir.FloatType())
        product = builder.fadd(builder.fmul(args[3], total), args[4])
        square = builder.sitofp(square, ir.FloatType())
        return builder.fsub(square, builder.fmul(gain, product))

    signature = types.float32(planes, signs, types.intp, types.float32, types.float32)
    return signature, codegen


@intrinsic
def bit_planes_pack(typingctx, numbers, planes):
    """Write numbers int16[p] to planes uint8[BIT_PLANES, w] as `bit_planes_distance` reads them.

    p is a multiple of CODE_LANES, at most 8 w.
    """

    def codegen(context, builder, signature, args):
        numbers, planes = _arrays(context, builder, signature, args, 0, 1)
        size = cgutils.unpack_tuple(builder, numbers.shape)[0]
        width = cgutils.unpack_tuple(builder, planes.shape)[1]
        lanes, word = ints(16, CODE_LANES), ir.IntType(CODE_LANES)
        zero = ir.Constant(lanes, [0] * CODE_LANES)
        with _in_steps(builder, size, CODE_LANES) as (at, _):
            values = load_unaligned(builder, builder.gep(numbers.data, [at]), lanes)
            byte = builder.lshr(at, at.type(3))
            for i in range(BIT_PLANES):
                bits = builder.and_(values, ir.Constant(lanes, [1 << i] * CODE_LANES))
                bits = builder.bitcast(builder.icmp_unsigned("!=", bits, zero), word)
                plane = builder.add(byte, builder.mul(width, width.type(i)))
                place = builder.gep(planes.data, [plane])
                builder.store(bits, builder.bitcast(place, word.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(numbers, planes), codegen


@intrinsic
def words_up(typingctx, words, start):
    """Move WORDS int64 of words from `start` on up by one place."""

    def codegen(context, builder, signature, args):
        (array,) = _arrays(context, builder, signature, args, 0)
        lanes, source = ints(64, WORDS), builder.gep(array.data, [args[1]])
        target = builder.bitcast(builder.gep(source, [args[1].type(1)]), lanes.as_pointer())
        builder.store(load_unaligned(builder, source, lanes), target, align=8)
        return context.get_dummy_value()

    return types.void(words, types.intp), codegen
