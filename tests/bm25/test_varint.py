"""Varints are decoded to the integers that were encoded."""

import numpy as np
from hypothesis import given, strategies as st

from llmds_nb.bm25.kernels import varint


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_varints_hold_any_integer(values):
    values = np.array(values, np.int64)
    data = np.empty(varint.varints_size(values), np.uint8)
    varint.varints_pack(values, data)
    back = np.empty_like(values)
    assert varint.varints_unpack(data, back) and (back == values).all()
    assert not varint.varints_unpack(data, np.empty(len(values) + 1, np.int64))
    assert not len(values) or not varint.varints_unpack(data, back[:-1].copy())
    assert len(data) >= len(values) and (not len(data) or data[-1] < 128)
