"""Lowers kernels to half of Numba's LLVM IR: less to make, print, parse, link and simplify.

For `a[i, 2]` Numba copies the array's fields through stack slots, multiplies by ones, adds zeros
and checks the sign of a constant: 31 instructions, of which LLVM leaves 5. A loop over `range(n)`
takes 100, counting references another 13 for each variable. Here an element is addressed from the
values at hand; a field that was put into an array or a tuple is taken from where it was put. `min`
and `max` of numbers are no functions to compile, one for each list of types. What is computed is
the same. With bounds checks on, elements are Numba's own.
"""

import operator

from llvmlite import ir
from llvmlite.ir.instructions import InsertValue
from numba.core import cgutils, errors, types
from numba.core.lowering import Lower
from numba.core.typing import signature as signature_of
from numba.cpython.builtins import do_minmax
from numba.np.arrayobj import load_item, store_item

_MEMINFO, _N_ITEMS, _DATA, _SHAPE = 0, 2, 4, 5  # fields of Numba's array struct
_OWNER = types.MemInfoPointer(types.voidptr)
_ZERO, _ONE = ir.IntType(64)(0), ir.IntType(64)(1)
_ATTRIBUTES = {"size": _N_ITEMS, "shape": _SHAPE}
_EXTREMES = {min: operator.lt, max: operator.gt}


def builtin_of(function):
    """The Python function of a Numba type of functions, if it is a built-in one."""
    return getattr(function, "typing_key", None)


def signature_at_hand(context, function, args):
    """The signature of a call that `KernelLower` lowers by itself, else None."""
    key, kinds = builtin_of(function), [types.unliteral(arg) for arg in args]
    if key not in _EXTREMES or len(kinds) < 2:
        return None
    if not all(isinstance(kind, types.Integer | types.Float) for kind in kinds):
        return None
    return signature_of(context.unify_types(*kinds), *kinds)


def member(builder, value, index):
    """Field number `index` of a struct or array, as it was inserted if that is known."""
    place = value
    while isinstance(place, InsertValue):
        if place.indices[0] == index:
            if len(place.indices) == 1:
                return place.value
            break
        place = place.aggregate
    return builder.extract_value(value, index)


class KernelLower(Lower):
    """Numba's lowering, with shortcuts for arrays, states and tuples."""

    def lower_block(self, block):
        """Numba's, without an error's context for each instruction: it is made for an error."""
        self.pre_block(block)
        for instruction in block.body:
            self.loc = instruction.loc
            try:
                self.lower_inst(instruction)
            except errors.NumbaError:
                raise
            except Exception as error:
                message = f"lowering {instruction}: {type(error).__name__}: {error}"
                raise errors.LoweringError(message, self.loc) from error
        self.post_block(block)

    def lower_getitem(self, resty, expr, value, index, signature):
        array = self.typeof(value.name)
        pointer = self._element(array, value, index)
        if pointer is None or resty != array.dtype:
            return super().lower_getitem(resty, expr, value, index, signature)
        return load_item(self.context, self.builder, array, pointer)

    def lower_setitem(self, target_var, index_var, value_var, signature):
        array = self.typeof(target_var.name)
        pointer = self._element(array, target_var, index_var)
        if pointer is None:
            return super().lower_setitem(target_var, index_var, value_var, signature)
        value, type_ = self.loadvar(value_var.name), self.typeof(value_var.name)
        value = self.context.cast(self.builder, value, type_, array.dtype)
        store_item(self.context, self.builder, array, value, pointer)
        return None

    def _element(self, array, array_var, index_var):
        """Where one element of a C-contiguous array of numbers lies; None for anything else."""
        if self.context.enable_boundscheck or not (
            isinstance(array, types.Array)
            and array.layout == "C"
            and isinstance(array.dtype, types.Number | types.Boolean)
        ):
            return None
        type_ = self.typeof(index_var.name)
        kinds = list(type_) if isinstance(type_, types.BaseTuple) else [type_]
        if len(kinds) != array.ndim or not all(isinstance(k, types.Integer) for k in kinds):
            return None
        builder, value = self.builder, self.loadvar(array_var.name)
        index = self.loadvar(index_var.name)
        shape, place = member(builder, value, _SHAPE), None
        for axis, kind in enumerate(kinds):
            i = member(builder, index, axis) if isinstance(type_, types.BaseTuple) else index
            i = self._from_start(i, kind, shape, axis)
            if place is None:
                place = i
            else:
                place = builder.add(builder.mul(place, member(builder, shape, axis)), i)
        return builder.gep(member(builder, value, _DATA), [place])

    def _from_start(self, index, kind, shape, axis):
        """An index of an axis as an unsigned one: negative ones count from the end."""
        builder = self.builder
        index = self.context.cast(builder, index, kind, types.intp if kind.signed else types.uintp)
        constant = index.constant if isinstance(index, ir.Constant) else None
        if not kind.signed or (isinstance(constant, int) and constant >= 0):
            return index
        negative = builder.icmp_signed("<", index, index.type(0))
        return builder.select(negative, builder.add(index, member(builder, shape, axis)), index)

    def lower_expr(self, resty, expr):
        if expr.op == "getattr" and expr.attr in _ATTRIBUTES:
            if isinstance(self.typeof(expr.value.name), types.Array):
                return member(self.builder, self.loadvar(expr.value.name), _ATTRIBUTES[expr.attr])
        elif expr.op == "static_getitem" and resty == types.intp:
            type_ = self.typeof(expr.value.name)
            if isinstance(type_, types.UniTuple) and expr.index in range(type_.count):
                return member(self.builder, self.loadvar(expr.value.name), expr.index)
        elif expr.op == "call":
            value = self._call(resty, expr)
            if value is not None:
                return value
        elif expr.op == "getiter" and resty == types.range_iter64_type:
            range_ = self.loadvar(expr.value.name)
            start, stop, step = (member(self.builder, range_, field) for field in range(3))
            if isinstance(step, ir.Constant) and step.constant == 1:
                return self._iterator(resty, start, stop, step)
        return super().lower_expr(resty, expr)

    def _call(self, resty, call):
        """The value of range(stop), range(start, stop) and of extremes of numbers, else None."""
        function = builtin_of(self.typeof(call.func.name))
        if call.kws or call.vararg or function not in (range, min, max):
            return None
        signature = self.fndesc.calltypes[call]
        kinds = signature.args
        if function is not range:
            if len(kinds) < 2:
                return None
            values = [self._cast_var(arg, kind) for arg, kind in zip(call.args, kinds, strict=True)]
            extreme = do_minmax(self.context, self.builder, kinds, values, _EXTREMES[function])
            return self.context.cast(self.builder, extreme, signature.return_type, resty)
        if resty != types.range_state64_type or len(kinds) > 2:
            return None
        bounds = [self._cast_var(bound, types.int64) for bound in call.args]
        return self._struct(resty, [_ZERO, *bounds][-2:] + [_ONE])

    def _iterator(self, type_, start, stop, step):
        """Of a range with step 1, as Numba's iterator: pointers to the next value and the count."""
        builder = self.builder
        counted = builder.sub(stop, start)
        some = builder.icmp_signed(">", counted, counted.type(0))
        next_value, count = (cgutils.alloca_once(builder, start.type) for _ in range(2))
        builder.store(start, next_value)
        builder.store(builder.select(some, counted, counted.type(0)), count)
        return self._struct(type_, [next_value, stop, step, count])

    def _struct(self, type_, values):
        """The struct of a Numba type with these fields."""
        struct = ir.Constant(self.context.get_value_type(type_), ir.Undefined)
        for place, value in enumerate(values):
            struct = self.builder.insert_value(struct, value, place)
        return struct

    def storevar(self, value, name, argidx=None):
        local = name in self._singly_assigned_vars and not self._disable_sroa_like_opt
        if local or argidx is not None or self._counts_references(name):
            super().storevar(value, name, argidx)
        else:  # without a look at the value that it replaces
            self._alloca_var(name, self.typeof(name))
            self.builder.store(value, self.getvar(name))

    def delvar(self, name):
        if self._counts_references(name):
            super().delvar(name)

    def _counts_references(self, name):
        model = self.context.data_model_manager[self.typeof(name)]
        return self.context.enable_nrt and model.contains_nrt_meminfo()

    def incref(self, typ, val):
        super().incref(*self._owner(typ, val))

    def decref(self, typ, val):
        super().decref(*self._owner(typ, val))

    def _owner(self, type_, value):
        """Of an array the one field that counts references, of anything else itself."""
        if not isinstance(type_, types.Array):
            return type_, value
        owner = member(self.builder, value, _MEMINFO)
        return (types.none, None) if isinstance(owner, ir.Constant) else (_OWNER, owner)
