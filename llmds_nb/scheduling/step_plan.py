"""StepPlan and StepInputs: what an engine computes in one step, and what its forward pass reads."""

from typing import Any, NamedTuple

import numpy as np

from .._core import validation
from .._core.jit import REFUSALS
from .._core.typing import Bools, Int32s, Int64s
from ..primitives.status import ABSENT, FULL, GROW, INVALID, OK, UNEVEN
from .batcher_state import BatcherState
from .kernels import continuous as b
from .kernels.step_inputs import N_PARTS, inputs_layout, step_inputs

_MAX_ROWS = 2**20
_MAX_WIDTH = 2**27
_NO_TOKENS, _NO_MASK = np.zeros(0, np.int32), np.zeros(0, np.bool_)


class StepPlan(NamedTuple):
    """What the engine computes in one step; false when there is nothing to do.

    Rows with one token come first, then those with more, each in the order of admission. Sequence
    i computes its tokens ``starts[i] .. starts[i] + n_tokens[i]``, whose K/V belongs in the next
    ``n_tokens[i]`` entries of `slots`.
    """

    seq_ids: Int64s  # [n]
    starts: Int64s  # [n]
    n_tokens: Int64s  # [n]
    is_prefill: Bools  # [n]: part of the prompt, or lost by a preemption
    preempted: Int64s  # [m]: sequences that lost their pages since the last step
    slots: Int64s  # [sum of n_tokens]: page * page_size + offset
    n_decode: int  # rows with one token
    samples: Bools  # [n]: the last token of the sequence is computed, so a token is to be sampled
    rows: Int32s  # [n]: a number below max_running that the request has as long as it runs
    number: int  # from 1: no two plans of a batcher have the same

    def __bool__(self) -> bool:
        return self.seq_ids.size > 0


def answer(
    plan_or_ids: Any, tokens: Any, finished: Any
) -> tuple[Int64s, Int32s, Bools, Bools | None, int]:
    """(ids, tokens, finished), of which the latter two are one for each id, or empty if None.

    Of a StepPlan the ids are those of its rows. Behind them, for a StepPlan, which rows sample and
    its number, which is ABSENT else.
    """
    number = ABSENT
    if not isinstance(plan_or_ids, StepPlan):
        ids, samples = validation.for_kernel(plan_or_ids, "seq_ids", validation.INT64), None
    else:
        number = validation.natural(plan_or_ids.number, "plan.number")
        ids = validation.for_kernel(plan_or_ids.seq_ids, "plan.seq_ids", validation.INT64)
        samples = _mask(plan_or_ids.samples, "plan.samples")
        validation.same_length("plan.samples", samples, "plan.seq_ids", ids)
    sampled, mask = _NO_TOKENS, _NO_MASK
    if tokens is not None:
        sampled = validation.for_kernel(tokens, "tokens", validation.INT32, low=-1)
        sampled = _spread(sampled, "tokens", ids, samples, -1)
    if finished is not None:
        mask = _spread(_mask(finished, "finished"), "finished", ids, samples, False)
    return ids, sampled, mask, samples, number


def _spread(values, name, ids, samples, other):
    """One value for each id, from those or from one for each row that samples."""
    if values.size == ids.size:
        return values
    if samples is None:
        validation.same_length(name, values, "seq_ids", ids)
    n = np.count_nonzero(samples)
    if values.size != n:
        raise ValueError(
            f"{name} has {values.size} entries for {ids.size} rows, of which {n} sample"
        )
    spread = np.full(ids.size, other, values.dtype)
    spread[samples] = values
    return spread


def _mask(values, name) -> Bools:
    try:
        mask = np.asarray(values)
    except ValueError:  # ragged nested lists
        raise ValueError(f"{name} must be booleans, one for each of seq_ids") from None
    if mask.dtype != np.bool_ and mask.size:
        raise TypeError(f"{name} must be booleans, not {mask.dtype}")
    if mask.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, not of shape {list(mask.shape)}")
    return np.require(mask, np.bool_, ["C", "A", "W"])


class StepInputs(NamedTuple):
    """The inputs of a forward pass: views into one buffer, for T tokens in B rows."""

    tokens: Int32s  # [T]; -1 where it is not known yet
    positions: Int32s  # [T]: in the sequence, from 0
    slots: Int32s  # [T]: page * page_size + offset, where the K/V of the token belongs
    kv_len: Int32s  # [B]: tokens of the row's sequence, those of this step included
    cu_q: Int32s  # [B + 1]: row i has the tokens cu_q[i] .. cu_q[i + 1]
    sample_rows: Int32s  # [S]: the places among the T tokens from which one is sampled
    block_table: Int32s  # [B, W]: pages, filled up with n_pages
    used: int  # how many leading entries of the buffer these parts fill


def inputs(state: BatcherState, plan: StepPlan, out: Any, pad_to: Any, width: Any) -> StepInputs:
    """See `ContinuousBatcher.inputs`; the caller holds the locks."""
    if not isinstance(plan, StepPlan):
        raise TypeError(f"plan must be a StepPlan, not {type(plan).__name__}")
    state.check_number(plan.number)
    padded = _padded(state, pad_to)
    columns = ABSENT
    if width is not None:
        columns = validation.integer(width, "width", low=0, high=_MAX_WIDTH)
    buffer = _NO_TOKENS if out is None else _checked(out)
    cache, places = state.cache, state.places
    if cache.n_pages * cache.page_size > validation.INT32_MAX:
        raise ValueError(
            f"{cache.n_pages} pages of {cache.page_size} tokens have more slots than the 2**31 - 1 "
            "of int32 inputs"
        )
    given = state.handle.address, *plan[:3], padded, columns
    try:
        status = step_inputs(*given, buffer, places)
    except REFUSALS:  # of arrays of other types, or read-only ones as from another process
        given = state.handle.address, *map(_own, plan[:3]), padded, columns
        status = step_inputs(*given, buffer, places)
    if status == GROW and out is None:
        buffer = np.empty(places.item(N_PARTS), np.int32)
        status = step_inputs(*given, buffer, places)
    if status != OK:
        _refuse(state, status, buffer.size, columns)
    return _views(buffer, max(padded, plan.seq_ids.size), *places.tolist())


def _own(column):
    """A column of a plan as the kernel takes it."""
    return validation.for_kernel(column, "the columns of plan", validation.INT64)


def layout(out: Any, n_rows: int, n_tokens: int, width: int) -> StepInputs:
    """See `ContinuousBatcher.inputs_layout`."""
    buffer, places = _checked(out), np.empty(N_PARTS, np.int64)
    size = inputs_layout(n_rows, n_tokens, width, places)
    if size > buffer.size:
        raise ValueError(f"out must have {size} entries or more, not {buffer.size}")
    return _views(buffer, n_rows, *places.tolist(), size, n_tokens, width, n_rows)


def _views(out, n_rows, *places) -> StepInputs:
    p0, p1, p2, p3, p4, p5, p6, size, total, width, n_samples = places
    return StepInputs(
        out[p0 : p0 + total], out[p1 : p1 + total], out[p2 : p2 + total], out[p3 : p3 + n_rows],
        out[p4 : p4 + n_rows + 1], out[p5 : p5 + n_samples],
        out[p6:size].reshape(n_rows, width), size,
    )  # fmt: skip


def _padded(state, pad_to):
    """How many rows the batch has at least."""
    if pad_to is None:
        return 0
    n, n_decode = (state.arrays.count.item(place) for place in (b.N_PLANNED, b.N_DECODE))
    rows = validation.integer(pad_to, "pad_to", low=n, high=_MAX_ROWS)
    if n_decode < n:
        raise ValueError(f"pad_to is for rows of one token: {n - n_decode} of {n} rows have more")
    return rows


def _checked(out):
    if type(out) is not np.ndarray:
        raise TypeError(f"out must be a one-dimensional int32 array, not {validation.shown(out)}")
    if out.dtype != np.int32 or out.ndim != 1:
        raise TypeError(
            f"out must be a one-dimensional int32 array, not {out.dtype} of shape {list(out.shape)}"
        )
    if not out.flags.carray:
        raise ValueError("out must be contiguous, aligned and writable")
    return out


def _refuse(state, status, size, width):
    place = state.places.item(0)
    if status == INVALID:
        raise ValueError("plan is not the present step of this batcher")
    if status == FULL:
        raise state.stray(place)
    if status == UNEVEN:
        raise ValueError(f"width must be >= {place}, the most pages of a row, not {width}")
    needed = state.places.item(N_PARTS)
    raise ValueError(f"out must have {needed} entries or more, not {size}")
