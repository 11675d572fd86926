"""Products of rows with packed weights: x W^T + b.

    x       float32[M, K]
    panels  float32[P, K, WIDTH], W^T in panels of WIDTH columns, the last one padded with zeros
    bias    float32[N], or float32[0]
    out     float32[M, N], (P - 1) WIDTH < N <= P WIDTH

Rows are taken in blocks, which stay in the cache while all panels pass over them, and some at a
time share each load of a panel (Goto and van de Geijn, 2008). Each sum is formed in the order of k,
_DEPTH products at a time, whose sums are added: rounding grows with the root of _DEPTH and of their
number, not with that of K. A row's result does not depend on the other rows.
"""

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..._core.jit import kernel
from ..._core.scratch import cut, keep_alive, scratch
from .vectors import add_products, constant, in_steps, lanes_of, load, row_at, store

WIDTH = 32  # columns of a panel
_BLOCK = 96  # rows that all panels pass over; a multiple of _MANY
_MANY, _SOME = 8, 4  # rows that share each load
_DEPTH = 512  # products that are summed one after another


def _panel(n_rows):
    """void(x, row, panels, p, out, target, column): one panel's part of n_rows rows.

    out[target : target + n_rows, column : column + WIDTH] = x[row : row + n_rows] @ panels[p].
    O(K).
    """

    def codegen(context, builder, signature, args):
        kinds = signature.args
        x, row, panels, p, out, target, column = args
        index, lanes = row.type, lanes_of(context)
        x, depth = row_at(context, builder, kinds[0], x, row)
        data = context.make_array(kinds[2])(context, builder, panels).data
        size = builder.mul(depth, index(WIDTH))
        panel = builder.gep(data, [builder.mul(p, size)])
        out, width = row_at(context, builder, kinds[4], out, target)
        out = builder.gep(out, [column])
        lines = [builder.gep(x, [builder.mul(depth, index(r))]) for r in range(n_rows)]
        outs = [builder.gep(out, [builder.mul(width, index(r))]) for r in range(n_rows)]
        for start in range(0, WIDTH, 2 * lanes):
            columns = [index(start), index(start + lanes)]
            places = [builder.gep(each, [at]) for each in outs for at in columns]
            zero = constant(0.0, lanes)
            for place in places:
                store(builder, zero, place)

            def line_at(k, columns=columns):
                line = builder.gep(panel, [builder.mul(k, index(WIDTH))])
                return [builder.gep(line, [at]) for at in columns]

            with in_steps(builder, depth, _DEPTH) as (begin, _):
                end = builder.add(begin, index(_DEPTH))
                end = builder.select(builder.icmp_signed("<", end, depth), end, depth)
                sums = [cgutils.alloca_once_value(builder, zero) for _ in places]
                for total in sums:
                    builder.store(zero, total)
                add_products(builder, lines, line_at, (begin, end), sums)
                for total, place in zip(sums, places, strict=True):
                    before = load(builder, place, lanes)
                    store(builder, builder.fadd(before, builder.load(total)), place)
        return context.get_dummy_value()

    def panel(typingctx, x, row, panels, p, out, target, column):
        kinds = x, types.intp, panels, types.intp, out, types.intp, types.intp
        return types.void(*kinds), codegen

    return intrinsic(panel)


_panel_many, _panel_some, _panel_one = _panel(_MANY), _panel(_SOME), _panel(1)


@kernel(noinline=True, borrow=True)
def _pass(x, first, last, panels, p, out, shift, column):
    """Panel p over rows first:last, to rows of out from first - shift on. O((last - first) K)."""
    i = first
    while i + _MANY <= last:
        _panel_many(x, i, panels, p, out, i - shift, column)
        i += _MANY
    if i + _SOME <= last:
        _panel_some(x, i, panels, p, out, i - shift, column)
        i += _SOME
    while i < last:
        _panel_one(x, i, panels, p, out, i - shift, column)
        i += 1


@kernel(nogil=True)
def linear(x, panels, bias, span, out):
    """The columns of out = x W^T + b that panels span[0]:span[1] give. O(M K N)."""
    n_rows, n_columns = out.shape
    begin, end = span[0] * WIDTH, min(n_columns, span[1] * WIDTH)
    parts = (((_BLOCK if end % WIDTH else 0, WIDTH), np.float32),)  # for a part of a panel
    memory = scratch(parts)
    (edge,) = cut(memory, parts)
    for first in range(0, n_rows, _BLOCK):
        last = min(n_rows, first + _BLOCK)
        for p in range(span[0], span[1]):
            column = p * WIDTH
            if column + WIDTH <= n_columns:
                _pass(x, first, last, panels, p, out, 0, column)
            else:
                _pass(x, first, last, panels, p, edge, first, 0)
                for i in range(first, last):
                    for j in range(column, n_columns):
                        out[i, j] = edge[i - first, j - column]
        if bias.size > 0:
            for i in range(first, last):
                for j in range(begin, end):
                    out[i, j] += bias[j]
    keep_alive(memory)


@kernel(nogil=True)
def pack(weight, row, panels):
    """Put a weight float32[n, K] into rows row:row + n of W; panels hold zeros before. O(n K)."""
    for i in range(weight.shape[0]):
        p, place = (row + i) // WIDTH, (row + i) % WIDTH
        for k in range(weight.shape[1]):
            panels[p, k, place] = weight[i, k]
