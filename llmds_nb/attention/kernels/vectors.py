"""Vectors of float32 in LLVM IR: loads, exponentials, and what several intrinsics share.

Every function takes an IR builder and returns an IR value; all of it is portable LLVM.
"""

import math

from llvmlite import ir
from numba.core import cgutils

from ..._core.llvm import pick

FLOAT, INT = ir.FloatType(), ir.IntType(32)
_LOG2_E = 1 / math.log(2)
_LN2_HIGH = 0.693359375  # of 9 bits: a product with a whole number below 2**15 is exact
_LN2_LOW = math.log(2) - _LN2_HIGH
_SHIFT = 1.5 * 2.0**23  # the sum with it rounds to a whole number, which its lowest bits hold
_LEAST = -87.0  # below this e**x counts as 0; it is 1.6e-38
# (e**r - 1 - r) / r**2 for |r| <= ln(2) / 2, the highest power first; e**r to 6e-11.
_EXP = (1.9790298e-4, 1.3944704e-3, 8.3334973e-3, 4.1666294e-2, 1.6666666e-1, 0.50000001)


def lanes_of(context):
    """How many float32 a vector register of the compiler's target holds."""
    features = getattr(context.codegen(), "_tm_features", "")
    return 16 if "+avx512f" in features else 8 if "+avx" in features else 4


def vector(lanes):
    """The type of so many float32."""
    return ir.VectorType(FLOAT, lanes)


def constant(value, lanes, kind=FLOAT):
    """A constant in every lane."""
    return ir.Constant(ir.VectorType(kind, lanes), [value] * lanes)


def spread(builder, value, lanes):
    """A float in every lane."""
    first = builder.insert_element(ir.Constant(vector(lanes), ir.Undefined), value, INT(0))
    return pick(builder, first, first, [0] * lanes)


def load(builder, pointer, lanes):
    """float32 lanes at a pointer."""
    return builder.load(builder.bitcast(pointer, vector(lanes).as_pointer()), align=4)


def store(builder, value, pointer):
    """Store lanes at a pointer."""
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=4)


def multiply_add(builder, a, b, c):
    """a * b + c; rounded once where the target has an instruction for that."""
    name = "llvm.fmuladd" + (
        f".v{a.type.count}f32" if isinstance(a.type, ir.VectorType) else ".f32"
    )
    kind = ir.FunctionType(a.type, [a.type] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b, c])


def exp(builder, x):
    """e**x in each lane for x <= 88; 0 below _LEAST; of NaN, NaN. Error below 2 ulp."""
    lanes = x.type.count
    ints = ir.VectorType(INT, lanes)
    low = builder.fcmp_ordered("<", x, constant(_LEAST, lanes))
    x = builder.select(low, constant(_LEAST, lanes), x)
    shifted = multiply_add(builder, x, constant(_LOG2_E, lanes), constant(_SHIFT, lanes))
    whole = builder.fsub(shifted, constant(_SHIFT, lanes))
    r = multiply_add(builder, whole, constant(-_LN2_HIGH, lanes), x)
    r = multiply_add(builder, whole, constant(-_LN2_LOW, lanes), r)
    p = constant(_EXP[0], lanes)
    for coefficient in _EXP[1:]:
        p = multiply_add(builder, p, r, constant(coefficient, lanes))
    p = multiply_add(builder, builder.fmul(p, r), r, r)
    p = builder.fadd(p, constant(1.0, lanes))
    power = builder.shl(builder.bitcast(shifted, ints), constant(23, lanes, INT))
    power = builder.add(power, constant(127 << 23, lanes, INT))
    value = builder.fmul(p, builder.bitcast(power, x.type))
    return builder.select(low, constant(0.0, lanes), value)


def tanh(builder, x):
    """tanh(x) in each lane: (1 - t) / (1 + t) of t = e**(-2 |x|), and a series near 0."""
    lanes, ints = x.type.count, ir.VectorType(INT, x.type.count)
    bits = builder.bitcast(x, ints)
    sign = builder.and_(bits, constant(-(2**31), lanes, INT))
    size = builder.bitcast(builder.xor(bits, sign), x.type)
    t = exp(builder, builder.fmul(size, constant(-2.0, lanes)))
    one = constant(1.0, lanes)
    far = builder.fdiv(builder.fsub(one, t), builder.fadd(one, t))
    square = builder.fmul(size, size)
    near = constant(-17 / 315, lanes)
    for coefficient in (2 / 15, -1 / 3):
        near = multiply_add(builder, near, square, constant(coefficient, lanes))
    near = multiply_add(builder, builder.fmul(near, square), size, size)
    is_near = builder.fcmp_ordered("<", size, constant(0.15, lanes))
    value = builder.bitcast(builder.select(is_near, near, far), ints)
    return builder.bitcast(builder.or_(value, sign), x.type)


def add_products(builder, rows, line_at, span, sums):
    """sums += rows[., k] * line k for k in span: all rows share each load of a line.

    line_at(k) are the pointers to the vectors of line k; sums, allocated, are as many for each row.
    """
    lanes = sums[0].type.pointee.count
    with cgutils.for_range_slice(builder, *span, span[0].type(1), inc=True) as (k, _):
        factors = [load(builder, place, lanes) for place in line_at(k)]
        for r, row in enumerate(rows):
            value = spread(builder, builder.load(builder.gep(row, [k])), lanes)
            own = sums[len(factors) * r : len(factors) * (r + 1)]
            for total, factor in zip(own, factors, strict=True):
                added = multiply_add(builder, value, factor, builder.load(total))
                builder.store(added, total)


def row_at(context, builder, kind, array, row):
    """The address of a row of a 2-D array, and how long it is."""
    array = context.make_array(kind)(context, builder, array)
    width = cgutils.unpack_tuple(builder, array.shape)[1]
    return builder.gep(array.data, [builder.mul(row, width)]), width


def in_steps(builder, size, step):
    """A loop over 0, step, ... below `size`."""
    return cgutils.for_range_slice(builder, size.type(0), size, size.type(step), inc=True)


def folded(builder, value, combine):
    """All lanes combined to one, by halves."""
    return builder.extract_element(folded_to(builder, value, 1, combine), INT(0))


def folded_to(builder, value, n, combine):
    """The lanes combined by halves until n are left."""
    while value.type.count > n:
        lanes = list(range(value.type.count))
        half = len(lanes) // 2
        low, high = (pick(builder, value, value, part) for part in (lanes[:half], lanes[half:]))
        value = combine(builder, low, high)
    return value


def greater(builder, a, b):
    """The greater of each pair of lanes; b where a is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)
