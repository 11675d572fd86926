"""What intrinsics of several domains are built from: vectors, and arrays at addresses, in LLVM IR.

Every function takes an IR builder and returns an IR value; all of it is portable LLVM.
"""

from llvmlite import ir
from numba.core import cgutils


def ints(bits, lanes):
    """The type of a vector of `lanes` integers of so many bits."""
    return ir.VectorType(ir.IntType(bits), lanes)


def pick(builder, one, other, lanes):
    """The vector of these lanes of `one` and, counted on from its last, of `other`."""
    return builder.shuffle_vector(one, other, ir.Constant(ints(32, len(lanes)), lanes))


def spread(builder, value, lanes):
    """The integer `value` in every one of `lanes` lanes."""
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    vector = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return pick(builder, vector, vector, [0] * lanes)


def halved(builder, value):
    """The lower half of the lanes plus the upper half."""
    lanes = list(range(value.type.count))
    half = len(lanes) // 2
    return builder.add(
        pick(builder, value, value, lanes[:half]), pick(builder, value, value, lanes[half:])
    )


def load_unaligned(builder, pointer, type_):
    """The value of a type at a pointer of any alignment."""
    return builder.load(builder.bitcast(pointer, type_.as_pointer()), align=1)


def array_value(context, builder, type_, pointer, lengths, owner=None):
    """The C-contiguous array of a Numba type over memory, with Numba's owner of it or none."""
    item = context.get_abi_sizeof(context.get_data_type(type_.dtype))
    strides = [ir.Constant(cgutils.intp_t, item)]
    n_items = lengths[-1]
    for length in lengths[:0:-1]:
        strides.insert(0, builder.mul(strides[0], length))
    for length in lengths[-2::-1]:
        n_items = builder.mul(n_items, length, flags=["nsw"])
    kind = context.get_value_type(type_)
    meminfo, parent, _, _, data, _, _ = kind.elements
    array = ir.Constant(kind, ir.Undefined)
    for place, value in enumerate(
        [
            ir.Constant(meminfo, None) if owner is None else owner,
            ir.Constant(parent, None),
            n_items,
            strides[-1],
            builder.bitcast(pointer, data),
            cgutils.pack_array(builder, lengths),
            cgutils.pack_array(builder, strides),
        ]
    ):
        array = builder.insert_value(array, value, place)
    return array
