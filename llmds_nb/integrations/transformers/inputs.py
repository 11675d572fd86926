"""A stand-in for ContinuousBatcher.inputs and the further fields of StepPlan."""

from typing import Any, NamedTuple

import numpy as np


class StepInputs(NamedTuple):
    """A step as flat arrays, rows of one token first."""

    tokens: Any
    positions: Any
    slots: Any
    kv_len: Any
    cu_q: Any
    sample_rows: Any
    block_table: Any
    used: int


class Plan(NamedTuple):
    """A plan in the order of its inputs."""

    seq_ids: Any
    starts: Any
    is_prefill: Any
    rows: Any
    samples: Any
    n_decode: int


def inputs_of(batcher: Any, plan: Any, places: dict[int, int]) -> tuple[Plan, StepInputs]:
    """The inputs of a plan."""
    order = np.argsort(plan.n_tokens != 1, kind="stable")
    first = np.concatenate(([0], np.cumsum(plan.n_tokens)))
    cache = batcher.cache
    known = [i for i in order if int(plan.seq_ids[i]) in cache]
    tokens, positions, slots, kv_len, samples, cu = [], [], [], [], [], [0]
    for i in known:
        start, n = plan.starts[i], plan.n_tokens[i]
        own = cache.tokens(int(plan.seq_ids[i]))
        tokens.append(own[start : start + n])
        positions.append(np.arange(start, start + n))
        slots.append(plan.slots[first[i] : first[i + 1]])
        kv_len.append(start + n)
        samples.append(start + n == own.size)
        cu.append(cu[-1] + n)
    ids = plan.seq_ids[known]
    for id_ in [i for i in places if i not in cache]:
        del places[id_]
    for id_ in ids.tolist():
        if id_ not in places:
            places[id_] = min(set(range(len(places) + 1)) - set(places.values()))
    rows = np.array([places[i] for i in ids.tolist()], np.int32)
    flat = [np.concatenate([[], *x]).astype(np.int32) for x in (tokens, positions, slots)]
    table = cache.block_table(ids, pad=cache.n_pages)
    cu_q = np.array(cu, np.int32)
    mask = np.array(samples, np.bool_)
    sample_rows = cu_q[1:][mask] - 1
    n_decode = int((plan.n_tokens[known] == 1).sum())
    step = StepInputs(
        flat[0], flat[1], flat[2], np.array(kv_len, np.int32), cu_q, sample_rows, table, 0
    )
    return Plan(ids, plan.starts[known], plan.is_prefill[known], rows, mask, n_decode), step
