"""Integers of variable length: LEB128 varints, with zigzag for those that may be negative.

    data  uint8[n]   varints end to end

A varint holds a uint64 in groups of seven bits, lowest first; every byte but its last has the high
bit set. Zigzag maps 0, -1, 1, -2, ... to 0, 1, 2, 3, ..., so that small differences of either sign
are short. Reading never passes the end of `data` as long as the last byte of `data` ends a varint,
which whoever opens a file checks.
"""

import numpy as np

from ..._core.jit import kernel

_1, _7, _LOW, _HIGH = (np.uint64(n) for n in (1, 7, 127, 128))


@kernel(noinline=True, borrow=True)
def varint_size(value):
    """Bytes that the uint64 `value` takes: 1 to 10. O(1)."""
    size = 1
    value = np.uint64(value)
    while value >= _HIGH:
        value >>= _7
        size += 1
    return size


@kernel(noinline=True, borrow=True)
def varint_write(data, position, value):
    """Write `value` at data[position:]; return the position after it. O(1)."""
    value = np.uint64(value)
    while value >= _HIGH:
        data[position] = np.uint8((value & _LOW) | _HIGH)
        value >>= _7
        position += 1
    data[position] = np.uint8(value)
    return position + 1


@kernel(noinline=True, borrow=True)
def varint_read(data, position):
    """Return (uint64 at data[position:], uint64 position after it). O(1)."""
    position = np.uint64(position)
    byte = np.uint64(data[position])
    position += _1
    value = byte & _LOW
    shift = _7
    while byte >= _HIGH:
        byte = np.uint64(data[position])
        position += _1
        value |= (byte & _LOW) << shift
        shift += _7
    return value, position


@kernel
def zigzag(value):
    """The int64 `value` as a uint64 that is small when |value| is. O(1)."""
    return np.uint64((value << 1) ^ (value >> 63))


@kernel(noinline=True, borrow=True)
def unzigzag(value):
    """The int64 that `zigzag` made `value` of. O(1)."""
    return np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1))


@kernel
def varints_size(values):
    """Bytes that `varints_pack` writes for int64[n] values. O(n)."""
    size = 0
    for i in range(values.size):
        size += varint_size(zigzag(values[i]))
    return size


@kernel
def varints_pack(values, data):
    """Write int64[n] values as zigzag varints into data uint8[varints_size(values)]. O(n)."""
    position = 0
    for i in range(values.size):
        position = varint_write(data, position, zigzag(values[i]))


@kernel
def varints_unpack(data, values):
    """Fill int64[n] values from data; return False when data holds fewer or more. O(n)."""
    position, end = np.uint64(0), np.uint64(data.size)
    for i in range(values.size):
        if position >= end:
            return False
        value, position = varint_read(data, position)
        values[i] = unzigzag(value)
    return position == end
