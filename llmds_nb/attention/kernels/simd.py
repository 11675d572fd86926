"""Arithmetic on rows of float32 scratch.

Arrays are float32[., n], C-contiguous, where n is a multiple of BLOCK but for the left side of a
product. How many lanes a vector has is chosen by the compiler's target.
"""

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .vectors import (
    INT,
    add_products,
    constant,
    exp,
    folded,
    greater,
    in_steps,
    lanes_of,
    load,
    multiply_add,
    row_at,
    spread,
    store,
    tanh,
)  # fmt: skip

BLOCK = 32  # items that a row of scratch is padded to a multiple of
ROWS = 4  # rows of a product that share each load of its right side


def _product(accumulate):
    """void(a, row, b, column, n, c): C = A B, or C += A B, for a part of c.

    C is c[row : row + ROWS, column : column + BLOCK], A is a[row : row + ROWS, :n], B is
    b[:n, column : column + BLOCK]. O(n).
    """

    def codegen(context, builder, signature, args):
        kinds = signature.args
        left, row, right, column, n, out = args
        a, a_width = row_at(context, builder, kinds[0], left, row)
        b, b_width = row_at(context, builder, kinds[2], right, row.type(0))
        c, c_width = row_at(context, builder, kinds[5], out, row)
        index, lanes = row.type, lanes_of(context)
        b, c = (builder.gep(start, [column]) for start in (b, c))
        rows = [builder.gep(a, [builder.mul(a_width, index(r))]) for r in range(ROWS)]
        outs = [builder.gep(c, [builder.mul(c_width, index(r))]) for r in range(ROWS)]
        for start in range(0, BLOCK, 2 * lanes):
            columns = [index(start), index(start + lanes)]
            places = [builder.gep(each, [at]) for each in outs for at in columns]
            sums = []
            for place in places:
                first = load(builder, place, lanes) if accumulate else constant(0.0, lanes)
                sums.append(cgutils.alloca_once_value(builder, first))

            def line_at(k, columns=columns):
                line = builder.gep(b, [builder.mul(k, b_width)])
                return [builder.gep(line, [at]) for at in columns]

            add_products(builder, rows, line_at, (index(0), n), sums)
            for total, place in zip(sums, places, strict=True):
                store(builder, builder.load(total), place)
        return context.get_dummy_value()

    def product(typingctx, a, row, b, column, n, c):
        return types.void(a, types.intp, b, types.intp, types.intp, c), codegen

    return intrinsic(product)


product, product_add = _product(False), _product(True)


@intrinsic
def soft_cap(typingctx, a, row, cap):
    """a[row] = cap tanh(a[row] / cap). O(n)."""

    def codegen(context, builder, signature, args):
        start, n = row_at(context, builder, a, *args[:2])
        lanes = lanes_of(context)
        cap = spread(builder, args[2], lanes)
        with in_steps(builder, n, lanes) as (i, _):
            place = builder.gep(start, [i])
            value = tanh(builder, builder.fdiv(load(builder, place, lanes), cap))
            store(builder, builder.fmul(value, cap), place)
        return context.get_dummy_value()

    return types.void(a, types.intp, types.float32), codegen


@intrinsic
def largest(typingctx, a, row, least):
    """The largest of a[row] and `least`, float32; NaN are passed over. O(n)."""

    def codegen(context, builder, signature, args):
        start, n = row_at(context, builder, a, *args[:2])
        lanes = lanes_of(context)
        best = cgutils.alloca_once_value(builder, spread(builder, args[2], lanes))
        with in_steps(builder, n, lanes) as (i, _):
            value = load(builder, builder.gep(start, [i]), lanes)
            builder.store(greater(builder, value, builder.load(best)), best)
        return folded(builder, builder.load(best), greater)

    return types.float32(a, types.intp, types.float32), codegen


@intrinsic
def exp_sum(typingctx, a, row, shift):
    """a[row] = e**(a[row] - shift); return their sum, float32. O(n)."""

    def codegen(context, builder, signature, args):
        start, n = row_at(context, builder, a, *args[:2])
        lanes = lanes_of(context)
        shift = spread(builder, args[2], lanes)
        total = cgutils.alloca_once_value(builder, constant(0.0, lanes))
        with in_steps(builder, n, lanes) as (i, _):
            place = builder.gep(start, [i])
            value = exp(builder, builder.fsub(load(builder, place, lanes), shift))
            store(builder, value, place)
            builder.store(builder.fadd(builder.load(total), value), total)
        return folded(builder, builder.load(total), lambda builder, x, y: builder.fadd(x, y))

    return types.float32(a, types.intp, types.float32), codegen


@intrinsic
def exp_one(typingctx, x):
    """e**x of one float32, as `exp_sum` has it."""

    def codegen(context, builder, signature, args):
        value = exp(builder, spread(builder, args[0], 4))
        return builder.extract_element(value, INT(0))

    return types.float32(types.float32), codegen


@intrinsic
def scale_by(typingctx, a, row, factor):
    """a[row] *= factor. O(n)."""

    def codegen(context, builder, signature, args):
        start, n = row_at(context, builder, a, *args[:2])
        lanes = lanes_of(context)
        factor = spread(builder, args[2], lanes)
        with in_steps(builder, n, lanes) as (i, _):
            place = builder.gep(start, [i])
            store(builder, builder.fmul(load(builder, place, lanes), factor), place)
        return context.get_dummy_value()

    return types.void(a, types.intp, types.float32), codegen


@intrinsic
def square_sum(typingctx, a, row):
    """The sum of a[row]**2, float32, by four vectors that are added at the end. O(n)."""

    def codegen(context, builder, signature, args):
        start, n = row_at(context, builder, a, *args)
        lanes = lanes_of(context)
        ways = min(4, BLOCK // lanes)
        zero = constant(0.0, lanes)
        totals = [cgutils.alloca_once_value(builder, zero) for _ in range(ways)]
        with in_steps(builder, n, ways * lanes) as (i, _):
            for number, total in enumerate(totals):
                at = builder.add(i, i.type(number * lanes))
                value = load(builder, builder.gep(start, [at]), lanes)
                builder.store(multiply_add(builder, value, value, builder.load(total)), total)
        values = [builder.load(total) for total in totals]
        while len(values) > 1:
            values = [builder.fadd(*pair) for pair in zip(values[::2], values[1::2], strict=True)]
        return folded(builder, values[0], lambda builder, x, y: builder.fadd(x, y))

    return types.float32(a, types.intp), codegen


@intrinsic
def silu_product(typingctx, a, row, out):
    """out[row] = g / (1 + e**-g) * v of the halves g, v of a[row]. O(n)."""

    def codegen(context, builder, signature, args):
        start, _ = row_at(context, builder, a, *args[:2])
        target, n = row_at(context, builder, out, args[2], args[1])
        lanes = lanes_of(context)
        one, most = constant(1.0, lanes), constant(88.0, lanes)
        with in_steps(builder, n, lanes) as (i, _):
            gate = load(builder, builder.gep(start, [i]), lanes)
            value = load(builder, builder.gep(start, [builder.add(i, n)]), lanes)
            negated = builder.fsub(constant(-0.0, lanes), gate)
            far = builder.fcmp_ordered(">", negated, most)  # where the result is below 1e-36
            below = builder.fadd(one, exp(builder, builder.select(far, most, negated)))
            silu = builder.select(far, constant(-0.0, lanes), builder.fdiv(gate, below))
            store(builder, builder.fmul(silu, value), builder.gep(target, [i]))
        return context.get_dummy_value()

    return types.void(a, types.intp, out), codegen
