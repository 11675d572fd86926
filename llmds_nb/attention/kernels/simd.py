"""Vector arithmetic on rows of float32 scratch, as portable LLVM IR.

Arrays are float32[., n], C-contiguous, where n is a multiple of BLOCK but for the left side of a
product. How many lanes a vector has is chosen by the compiler's target.
"""

import math

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..._core.llvm import pick

BLOCK = 32  # items that a row of scratch is padded to a multiple of
ROWS = 4  # rows of a product that share each load of its right side

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_LOG2_E = 1 / math.log(2)
_LN2_HIGH = 0.693359375  # of 9 bits: a product with a whole number below 2**15 is exact
_LN2_LOW = math.log(2) - _LN2_HIGH
_SHIFT = 1.5 * 2.0**23  # the sum with it rounds to a whole number, which its lowest bits hold
_LEAST = -87.0  # below this e**x counts as 0; it is 1.6e-38
# (e**r - 1 - r) / r**2 for |r| <= ln(2) / 2, the highest power first; e**r to 6e-11.
_EXP = (1.9790298e-4, 1.3944704e-3, 8.3334973e-3, 4.1666294e-2, 1.6666666e-1, 0.50000001)


def _lanes(context):
    """How many float32 a vector register of the compiler's target holds."""
    features = getattr(context.codegen(), "_tm_features", "")
    return 16 if "+avx512f" in features else 8 if "+avx" in features else 4


def _vector(lanes):
    return ir.VectorType(_FLOAT, lanes)


def _all(value, lanes, kind=_FLOAT):
    """A constant in every lane."""
    return ir.Constant(ir.VectorType(kind, lanes), [value] * lanes)


def _spread(builder, value, lanes):
    """A float in every lane."""
    undefined = ir.Constant(_vector(lanes), ir.Undefined)
    vector = builder.insert_element(undefined, value, _INT(0))
    return pick(builder, vector, vector, [0] * lanes)


def _load(builder, pointer, lanes):
    return builder.load(builder.bitcast(pointer, _vector(lanes).as_pointer()), align=4)


def _store(builder, value, pointer):
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=4)


def _multiply_add(builder, a, b, c):
    """a * b + c; rounded once where the target has an instruction for that."""
    name = "llvm.fmuladd" + (
        f".v{a.type.count}f32" if isinstance(a.type, ir.VectorType) else ".f32"
    )
    kind = ir.FunctionType(a.type, [a.type] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b, c])


def _exp(builder, x):
    """e**x in each lane for x <= 88; 0 below _LEAST; of NaN, NaN. Error below 2 ulp."""
    lanes = x.type.count
    ints = ir.VectorType(_INT, lanes)
    low = builder.fcmp_ordered("<", x, _all(_LEAST, lanes))
    x = builder.select(low, _all(_LEAST, lanes), x)
    shifted = _multiply_add(builder, x, _all(_LOG2_E, lanes), _all(_SHIFT, lanes))
    whole = builder.fsub(shifted, _all(_SHIFT, lanes))
    r = _multiply_add(builder, whole, _all(-_LN2_HIGH, lanes), x)
    r = _multiply_add(builder, whole, _all(-_LN2_LOW, lanes), r)
    p = _all(_EXP[0], lanes)
    for coefficient in _EXP[1:]:
        p = _multiply_add(builder, p, r, _all(coefficient, lanes))
    p = _multiply_add(builder, builder.fmul(p, r), r, r)
    p = builder.fadd(p, _all(1.0, lanes))
    power = builder.shl(builder.bitcast(shifted, ints), _all(23, lanes, _INT))
    power = builder.add(power, _all(127 << 23, lanes, _INT))
    value = builder.fmul(p, builder.bitcast(power, x.type))
    return builder.select(low, _all(0.0, lanes), value)


def _tanh(builder, x):
    """tanh(x) in each lane: (1 - t) / (1 + t) of t = e**(-2 |x|), and a series near 0."""
    lanes, ints = x.type.count, ir.VectorType(_INT, x.type.count)
    bits = builder.bitcast(x, ints)
    sign = builder.and_(bits, _all(-(2**31), lanes, _INT))
    size = builder.bitcast(builder.xor(bits, sign), x.type)
    t = _exp(builder, builder.fmul(size, _all(-2.0, lanes)))
    one = _all(1.0, lanes)
    far = builder.fdiv(builder.fsub(one, t), builder.fadd(one, t))
    square = builder.fmul(size, size)
    near = _all(-17 / 315, lanes)
    for coefficient in (2 / 15, -1 / 3):
        near = _multiply_add(builder, near, square, _all(coefficient, lanes))
    near = _multiply_add(builder, builder.fmul(near, square), size, size)
    is_near = builder.fcmp_ordered("<", size, _all(0.15, lanes))
    value = builder.bitcast(builder.select(is_near, near, far), ints)
    return builder.bitcast(builder.or_(value, sign), x.type)


def _row(context, builder, kind, array, row):
    """The address of a row of a 2-D array, and how long it is."""
    array = context.make_array(kind)(context, builder, array)
    width = cgutils.unpack_tuple(builder, array.shape)[1]
    return builder.gep(array.data, [builder.mul(row, width)]), width


def _over(builder, size, step):
    return cgutils.for_range_slice(builder, size.type(0), size, size.type(step), inc=True)


def _folded(builder, value, combine):
    """All lanes combined to one, by halves."""
    while value.type.count > 1:
        lanes = list(range(value.type.count))
        half = len(lanes) // 2
        low, high = (pick(builder, value, value, part) for part in (lanes[:half], lanes[half:]))
        value = combine(builder, low, high)
    return builder.extract_element(value, _INT(0))


def _greater(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _product(accumulate):
    """void(a, row, b, column, n, c): C = A B, or C += A B, for a part of c.

    C is c[row : row + ROWS, column : column + BLOCK], A is a[row : row + ROWS, :n], B is
    b[:n, column : column + BLOCK]. O(n).
    """

    def codegen(context, builder, signature, args):
        kinds = signature.args
        left, row, right, column, n, out = args
        a, a_width = _row(context, builder, kinds[0], left, row)
        b, b_width = _row(context, builder, kinds[2], right, row.type(0))
        c, c_width = _row(context, builder, kinds[5], out, row)
        index, lanes = row.type, _lanes(context)
        b, c = (builder.gep(start, [column]) for start in (b, c))
        rows = [builder.gep(a, [builder.mul(a_width, index(r))]) for r in range(ROWS)]
        outs = [builder.gep(c, [builder.mul(c_width, index(r))]) for r in range(ROWS)]
        for start in range(0, BLOCK, 2 * lanes):
            columns = [index(start), index(start + lanes)]
            places = [builder.gep(each, [at]) for each in outs for at in columns]
            sums = []
            for place in places:
                first = _load(builder, place, lanes) if accumulate else _all(0.0, lanes)
                sums.append(cgutils.alloca_once_value(builder, first))
            with _over(builder, n, 1) as (k, _):
                line = builder.gep(b, [builder.mul(k, b_width)])
                factors = [_load(builder, builder.gep(line, [at]), lanes) for at in columns]
                for r, each in enumerate(rows):
                    value = _spread(builder, builder.load(builder.gep(each, [k])), lanes)
                    for total, factor in zip(sums[2 * r : 2 * r + 2], factors, strict=True):
                        added = _multiply_add(builder, value, factor, builder.load(total))
                        builder.store(added, total)
            for total, place in zip(sums, places, strict=True):
                _store(builder, builder.load(total), place)
        return context.get_dummy_value()

    def product(typingctx, a, row, b, column, n, c):
        return types.void(a, types.intp, b, types.intp, types.intp, c), codegen

    return intrinsic(product)


product, product_add = _product(False), _product(True)


@intrinsic
def soft_cap(typingctx, a, row, cap):
    """a[row] = cap tanh(a[row] / cap). O(n)."""

    def codegen(context, builder, signature, args):
        start, n = _row(context, builder, a, *args[:2])
        lanes = _lanes(context)
        cap = _spread(builder, args[2], lanes)
        with _over(builder, n, lanes) as (i, _):
            place = builder.gep(start, [i])
            value = _tanh(builder, builder.fdiv(_load(builder, place, lanes), cap))
            _store(builder, builder.fmul(value, cap), place)
        return context.get_dummy_value()

    return types.void(a, types.intp, types.float32), codegen


@intrinsic
def largest(typingctx, a, row, least):
    """The largest of a[row] and `least`, float32; NaN are passed over. O(n)."""

    def codegen(context, builder, signature, args):
        start, n = _row(context, builder, a, *args[:2])
        lanes = _lanes(context)
        best = cgutils.alloca_once_value(builder, _spread(builder, args[2], lanes))
        with _over(builder, n, lanes) as (i, _):
            value = _load(builder, builder.gep(start, [i]), lanes)
            builder.store(_greater(builder, value, builder.load(best)), best)
        return _folded(builder, builder.load(best), _greater)

    return types.float32(a, types.intp, types.float32), codegen


@intrinsic
def exp_sum(typingctx, a, row, shift):
    """a[row] = e**(a[row] - shift); return their sum, float32. O(n)."""

    def codegen(context, builder, signature, args):
        start, n = _row(context, builder, a, *args[:2])
        lanes = _lanes(context)
        shift = _spread(builder, args[2], lanes)
        total = cgutils.alloca_once_value(builder, _all(0.0, lanes))
        with _over(builder, n, lanes) as (i, _):
            place = builder.gep(start, [i])
            value = _exp(builder, builder.fsub(_load(builder, place, lanes), shift))
            _store(builder, value, place)
            builder.store(builder.fadd(builder.load(total), value), total)
        return _folded(builder, builder.load(total), lambda builder, x, y: builder.fadd(x, y))

    return types.float32(a, types.intp, types.float32), codegen


@intrinsic
def exp_one(typingctx, x):
    """e**x of one float32, as `exp_sum` has it."""

    def codegen(context, builder, signature, args):
        value = _exp(builder, _spread(builder, args[0], 4))
        return builder.extract_element(value, _INT(0))

    return types.float32(types.float32), codegen


@intrinsic
def scale_by(typingctx, a, row, factor):
    """a[row] *= factor. O(n)."""

    def codegen(context, builder, signature, args):
        start, n = _row(context, builder, a, *args[:2])
        lanes = _lanes(context)
        factor = _spread(builder, args[2], lanes)
        with _over(builder, n, lanes) as (i, _):
            place = builder.gep(start, [i])
            _store(builder, builder.fmul(_load(builder, place, lanes), factor), place)
        return context.get_dummy_value()

    return types.void(a, types.intp, types.float32), codegen
