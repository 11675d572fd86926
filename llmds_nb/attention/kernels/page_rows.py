"""Scores and weighted values of tokens, read in their pages; in portable LLVM IR.

A token's key or value is D numbers at an address: those of n tokens are int64[n] `places`, in any
order, and `pages` gives their dtype and D. `heads` rows of scratch at a time share each load.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..._core.llvm import pick
from .vectors import (
    INT,
    constant,
    folded_to,
    in_steps,
    lanes_of,
    load,
    multiply_add,
    row_at,
    spread,
    store,
    vector,
)

_KEYS = 4  # whose scores are formed side by side
_SQUARE = 8  # keys and numbers of each that are transposed at a time


def _places(context, builder, signature, args, i):
    """A function that gives the pointer to token t, by the `places` that argument i is."""
    data = context.make_array(signature.args[i])(context, builder, args[i]).data
    item = context.get_data_type(signature.args[i - 1].dtype).as_pointer()
    return lambda t: builder.inttoptr(builder.load(builder.gep(data, [t])), item)


def _width(context, builder, signature, args, i):
    """D of the pages that argument i is."""
    array = context.make_array(signature.args[i])(context, builder, args[i])
    return cgutils.unpack_tuple(builder, array.shape)[3]


def _plain_half(builder, stored):
    """float32 lanes of those of float16, by integers."""
    lanes, wide = stored.type.count, ir.VectorType(INT, stored.type.count)
    bits = builder.zext(stored, wide)
    size = builder.shl(builder.and_(bits, constant(0x7FFF, lanes, INT)), constant(13, lanes, INT))
    # Moves the exponent's bias; subnormal numbers come out right as well.
    size = builder.fmul(builder.bitcast(size, vector(lanes)), constant(2.0**112, lanes))
    size = builder.bitcast(size, wide)
    exponent = builder.and_(bits, constant(0x7C00, lanes, INT))
    finite = builder.icmp_unsigned("!=", exponent, constant(0x7C00, lanes, INT))
    special = builder.or_(size, constant(0x7F800000, lanes, INT))  # infinity and NaN
    size = builder.select(finite, size, special)
    sign = builder.and_(bits, constant(0x8000, lanes, INT))
    sign = builder.shl(sign, constant(16, lanes, INT))
    return builder.bitcast(builder.or_(size, sign), vector(lanes))


def _widened(context, builder, kind, stored):
    """float32 lanes of stored ones."""
    lanes = stored.type.count
    if kind == types.float32:
        return stored
    if kind == types.uint16:
        wide = builder.zext(stored, ir.VectorType(INT, lanes))
        return builder.bitcast(builder.shl(wide, constant(16, lanes, INT)), vector(lanes))
    if "+f16c" not in getattr(context.codegen(), "_tm_features", ""):
        return _plain_half(builder, stored)
    halves = builder.bitcast(stored, ir.VectorType(ir.HalfType(), lanes))
    return builder.fpext(halves, vector(lanes))


def _loader(context, builder, kind, lanes):
    """load(pointer, mask=None): float32 lanes of stored numbers; 0 where the mask has none."""
    item = context.get_data_type(kind)
    type_ = ir.VectorType(item, lanes)

    def load_stored(pointer, mask=None):
        place = builder.bitcast(pointer, type_.as_pointer())
        size = context.get_abi_sizeof(item)
        if mask is None:
            return _widened(context, builder, kind, builder.load(place, align=size))
        name = f"llvm.masked.load.v{lanes}{'f' if kind == types.float32 else 'i'}{8 * size}.p0"
        shape = ir.FunctionType(type_, [place.type, INT, mask.type, type_])
        call = cgutils.get_or_insert_function(builder.module, shape, name)
        zeros = ir.Constant(type_, [0.0 if kind == types.float32 else 0] * lanes)
        return _widened(context, builder, kind, builder.call(call, [place, INT(size), mask, zeros]))

    return load_stored


def _first_lanes(builder, n, lanes):
    """A mask of the first n lanes."""
    count = builder.trunc(n, INT)
    first = builder.insert_element(
        ir.Constant(ir.VectorType(INT, lanes), ir.Undefined), count, INT(0)
    )
    counts = pick(builder, first, first, [0] * lanes)
    return builder.icmp_signed("<", ir.Constant(counts.type, list(range(lanes))), counts)


def _four_sums(builder, a, b, c, d):
    """The sums of the lanes of four vectors, as four lanes."""
    lanes = range(a.type.count)
    mixed = []
    for x, y in ((a, b), (c, d)):
        low = [i + j for i in lanes if i % 4 == 0 for j in (0, 1, len(lanes), len(lanes) + 1)]
        high = [i + 2 for i in low]
        mixed.append(builder.fadd(pick(builder, x, y, low), pick(builder, x, y, high)))
    even = [i + j for i in lanes if i % 4 == 0 for j in (0, 2, len(lanes), len(lanes) + 2)]
    odd = [i + 1 for i in even]
    sums = builder.fadd(pick(builder, *mixed, even), pick(builder, *mixed, odd))
    return folded_to(builder, sums, 4, lambda builder, x, y: builder.fadd(x, y))


def _heads_at_once(heads, lanes):
    """For how many heads the sums of four vectors fit the registers: 32 of 16 lanes, or 16."""
    return heads if lanes == 16 else min(heads, 2)


def _scores(heads):
    """void(q, row, pages, places, n, s): scores of n keys.

    s[row + g, t] = q[row + g] . key t for g < heads and t < n; what is behind is overwritten up to
    a multiple of _KEYS. q is padded with zeros to a multiple of the lanes. O(heads n D).
    """

    def codegen(context, builder, signature, args):
        kinds = signature.args
        q, row, _, _, n, s = args
        q, q_width = row_at(context, builder, kinds[0], q, row)
        place_of = _places(context, builder, signature, args, 3)
        width = _width(context, builder, signature, args, 2)
        s, s_width = row_at(context, builder, kinds[5], s, row)
        index, lanes = row.type, lanes_of(context)
        load_stored = _loader(context, builder, kinds[2].dtype, lanes)
        whole = builder.and_(width, index(-lanes))
        rest = builder.sub(width, whole)
        last = builder.sub(n, index(1))
        at_once = _heads_at_once(heads, lanes)

        def block(t, first, keys):
            rows = [
                builder.gep(q, [builder.mul(q_width, index(g))])
                for g in range(first, first + at_once)
            ]
            totals = [cgutils.alloca_once(builder, vector(lanes)) for _ in range(at_once * _KEYS)]
            for total in totals:
                builder.store(constant(0.0, lanes), total)

            def add(j, mask=None):
                values = [load_stored(builder.gep(key, [j]), mask) for key in keys]
                for g, each in enumerate(rows):
                    factor = load(builder, builder.gep(each, [j]), lanes)
                    for r, value in enumerate(values):
                        total = totals[g * _KEYS + r]
                        added = multiply_add(builder, factor, value, builder.load(total))
                        builder.store(added, total)

            with in_steps(builder, whole, lanes) as (j, _):
                add(j)
            with builder.if_then(builder.icmp_signed(">", rest, index(0)), likely=False):
                add(whole, _first_lanes(builder, rest, lanes))
            for g in range(at_once):
                values = [builder.load(x) for x in totals[g * _KEYS : (g + 1) * _KEYS]]
                out = builder.add(builder.mul(s_width, index(first + g)), t)
                store(builder, _four_sums(builder, *values), builder.gep(s, [out]))

        with in_steps(builder, n, _KEYS) as (t, _):
            keys = []
            for r in range(_KEYS):
                key = builder.add(t, index(r))
                key = builder.select(builder.icmp_signed("<", key, last), key, last)
                keys.append(place_of(key))
            for first in range(0, heads, at_once):
                block(t, first, keys)
        return context.get_dummy_value()

    def scores(typingctx, q, row, pages, places, n, s):
        return types.void(q, types.intp, pages, places, types.intp, s), codegen

    return intrinsic(scores)


def _values(heads):
    """void(s, row, pages, places, n, o): n values, weighted, added to rows of o.

    o[row + g] += sum of s[row + g, t] * value t over t < n, for g < heads. O(heads n Dv).
    """

    def codegen(context, builder, signature, args):
        kinds = signature.args
        s, row, _, _, n, o = args
        s, s_width = row_at(context, builder, kinds[0], s, row)
        place_of = _places(context, builder, signature, args, 3)
        width = _width(context, builder, signature, args, 2)
        o, o_width = row_at(context, builder, kinds[5], o, row)
        index, lanes = row.type, lanes_of(context)
        load_stored = _loader(context, builder, kinds[2].dtype, lanes)
        weights = [builder.gep(s, [builder.mul(s_width, index(g))]) for g in range(heads)]
        outs = [builder.gep(o, [builder.mul(o_width, index(g))]) for g in range(heads)]
        at_once, many = _heads_at_once(heads, lanes), 4  # vectors of a value

        def panel(j, n_vectors, mask=None):
            for first in range(0, heads, at_once):
                part(slice(first, first + at_once), j, n_vectors, mask)

        def part(some, j, n_vectors, mask):
            columns = [builder.add(j, index(lanes * i)) for i in range(n_vectors)]
            targets = [builder.gep(out, [at]) for out in outs[some] for at in columns]
            totals = [cgutils.alloca_once(builder, vector(lanes)) for _ in targets]
            for total, at in zip(totals, targets, strict=True):
                builder.store(load(builder, at, lanes), total)
            with in_steps(builder, n, 1) as (t, _):
                place = place_of(t)
                values = [load_stored(builder.gep(place, [at]), mask) for at in columns]
                for g, each in enumerate(weights[some]):
                    weight = spread(builder, builder.load(builder.gep(each, [t])), lanes)
                    for i, value in enumerate(values):
                        total = totals[g * n_vectors + i]
                        added = multiply_add(builder, weight, value, builder.load(total))
                        builder.store(added, total)
            for total, at in zip(totals, targets, strict=True):
                store(builder, builder.load(total), at)

        wide = builder.udiv(width, index(lanes * many))
        wide = builder.mul(wide, index(lanes * many))
        with in_steps(builder, wide, lanes * many) as (j, _):
            panel(j, many)
        whole = builder.and_(width, index(-lanes))
        with in_steps(builder, builder.sub(whole, wide), lanes) as (j, _):
            panel(builder.add(wide, j), 1)
        rest = builder.sub(width, whole)
        with builder.if_then(builder.icmp_signed(">", rest, index(0)), likely=False):
            panel(whole, 1, _first_lanes(builder, rest, lanes))
        return context.get_dummy_value()

    def values(typingctx, s, row, pages, places, n, o):
        return types.void(s, types.intp, pages, places, types.intp, o), codegen

    return intrinsic(values)


def _transposed(builder, rows):
    """As many vectors as lanes: lane i of vector j is lane j of rows[i]."""
    rows, distance = list(rows), len(rows) // 2
    while distance:
        for i in range(len(rows)):
            if not i & distance:
                a, b = rows[i], rows[i + distance]
                lanes = range(len(rows))
                low = [x if not x & distance else len(rows) + x - distance for x in lanes]
                high = [x + distance if not x & distance else len(rows) + x for x in lanes]
                rows[i], rows[i + distance] = pick(builder, a, b, low), pick(builder, a, b, high)
        distance //= 2
    return rows


@intrinsic
def columns_read(typingctx, pages, places, low, high, out):
    """Column t of out is key t, for low <= t < high; columns around them may be overwritten.

    out float32[D, n], n a multiple of _SQUARE. O((high - low) D).
    """

    def codegen(context, builder, signature, args):
        kinds = signature.args
        low, high = args[2:4]
        place_of = _places(context, builder, signature, args, 1)
        width = _width(context, builder, signature, args, 0)
        index = low.type
        out, step = row_at(context, builder, kinds[4], args[4], index(0))
        load_stored = _loader(context, builder, kinds[0].dtype, _SQUARE)
        whole = builder.and_(width, index(-_SQUARE))
        rest = builder.sub(width, whole)
        first = builder.and_(low, index(-_SQUARE))
        last = builder.sub(high, index(1))
        with in_steps(builder, builder.sub(high, first), _SQUARE) as (t, _):
            column = builder.add(first, t)
            keys = []
            for r in range(_SQUARE):
                key = builder.add(column, index(r))
                key = builder.select(builder.icmp_signed("<", key, last), key, last)
                key = builder.select(builder.icmp_signed(">", key, low), key, low)
                keys.append(place_of(key))
            target = builder.gep(out, [column])
            with in_steps(builder, whole, _SQUARE) as (j, _):
                rows = [load_stored(builder.gep(key, [j])) for key in keys]
                for i, row in enumerate(_transposed(builder, rows)):
                    line = builder.mul(builder.add(j, index(i)), step)
                    store(builder, row, builder.gep(target, [line]))
            with builder.if_then(builder.icmp_signed(">", rest, index(0)), likely=False):
                mask = _first_lanes(builder, rest, _SQUARE)
                rows = [load_stored(builder.gep(key, [whole]), mask) for key in keys]
                for i, row in enumerate(_transposed(builder, rows)):
                    with builder.if_then(builder.icmp_signed("<", index(i), rest)):
                        line = builder.mul(builder.add(whole, index(i)), step)
                        store(builder, row, builder.gep(target, [line]))
        return context.get_dummy_value()

    return types.void(pages, places, types.intp, types.intp, out), codegen


scores_1, scores_2, scores_4 = _scores(1), _scores(2), _scores(4)
values_1, values_2, values_4 = _values(1), _values(2), _values(4)


@intrinsic
def prefetch_at(typingctx, address):
    """Prefetch the cache line of an address; never faults."""

    def codegen(context, builder, signature, args):
        place = builder.inttoptr(args[0], cgutils.voidptr_t)
        shape = ir.FunctionType(ir.VoidType(), [place.type, INT, INT, INT])
        call = builder.module.declare_intrinsic("llvm.prefetch", [place.type], shape)
        builder.call(call, [place, INT(0), INT(3), INT(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen
