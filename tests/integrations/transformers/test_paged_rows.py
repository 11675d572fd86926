"""PagedRows against a DynamicCache, key by key, and interrupted at every line."""

import contextlib
import functools
import gc
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.cache_utils import DynamicCache  # noqa: E402

from llmds_nb import CapacityError  # noqa: E402
from llmds_nb.integrations.transformers import PagedCache  # noqa: E402
from llmds_nb.integrations.transformers.paged_rows import PagedRows  # noqa: E402

from ...interrupts import Interrupt, _Tracer  # noqa: E402

VERSION = tuple(map(int, transformers.__version__.split(".")[:2]))
LAYERS, HEADS, WIDTH, VALUES, PAGE = 2, 2, 4, 3, 4


def make(n_pages=200):
    config = transformers.LlamaConfig(num_hidden_layers=LAYERS, hidden_size=64)
    return PagedCache(config, n_pages=n_pages, page_size=PAGE)


class Both:
    """Keys and values of tokens in a PagedRows and in a DynamicCache.

    Those of a token are a function of it, its position and the layer, as in a model of which each
    layer sees the token alone.
    """

    def __init__(self, rows, pads):
        self.rows, self.plain, self.pads = rows, DynamicCache(), np.asarray(pads)
        self.tokens = np.empty((len(pads), 0), np.int64)

    def forward(self, tokens, start):
        """Give the columns from `start` to PagedRows, and those it lacks to the DynamicCache."""
        behind = self.tokens.shape[1]
        self.tokens = np.concatenate([self.tokens, tokens[:, behind:]], 1)
        for layer in range(LAYERS):
            read = self.rows.update(*self._states(tokens, start, layer), layer)
            want = self.plain.update(*self._states(tokens, behind, layer), layer)
            for row, pad in enumerate(self.pads):
                for got, right in zip(read, want, strict=True):
                    assert torch.equal(got[row, :, pad:], right[row, :, pad:])
            assert self.rows.get_seq_length(layer) == tokens.shape[1]
            assert self.rows.get_mask_sizes(3, layer) == (tokens.shape[1] + 3, 0)

    def _states(self, tokens, start, layer):
        positions = np.arange(tokens.shape[1]) - self.pads[:, None]
        numbers = (tokens * 1000 + positions * 7 + layer * 3)[:, None, start:, None]
        parts = np.arange(HEADS)[:, None, None], np.arange(WIDTH), np.arange(VALUES)
        made = (np.sin(numbers * 0.37 + parts[0] + 10 * part) for part in parts[1:])
        return [torch.from_numpy(x.astype(np.float32)) for x in made]


def move(both, rng, what):
    """One of the calls by which `generate` changes the rows of a cache."""
    n, columns = both.tokens.shape
    if what == "crop":
        k = int(rng.integers(0, columns + 1))
        both.rows.crop(-k)
        both.plain.crop(-k)
        both.tokens = both.tokens[:, : columns - k]
        return
    if what == "reorder":
        index = rng.integers(0, n, n)
        both.rows.reorder_cache(torch.from_numpy(index))
        both.plain.reorder_cache(torch.from_numpy(index))
    elif what == "select":
        index = rng.permutation(n)[: max(1, n - 1)]
        both.rows.batch_select_indices(torch.from_numpy(index))
        both.plain.batch_select_indices(torch.from_numpy(index))
    else:
        index = np.repeat(np.arange(n), 2)
        both.rows.batch_repeat_interleave(2)
        both.plain.batch_repeat_interleave(2)
    both.tokens, both.pads = both.tokens[index], both.pads[index]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_keys_and_values_are_those_of_a_dynamic_cache(seed, told):
    rng, cache = np.random.default_rng(seed), make()
    system = rng.integers(1, 50, 20)
    for _ in range(6):
        n, columns = int(rng.integers(1, 4)), int(rng.integers(20, 30))
        tokens, pads = rng.integers(1, 50, (n, columns)), np.zeros(n, int)
        if told:
            pads = rng.integers(0, 9, n)
        for row, pad in enumerate(pads):
            tokens[row, :pad] = 0
            tokens[row, pad : pad + 20] = system[: columns - pad]
        mask = np.arange(columns) >= pads[:, None]
        with cache.generating(tokens, mask) if told else contextlib.nullcontext(cache) as rows:
            both = Both(rows, pads)
            start = rows.get_seq_length()
            assert start <= columns - 1
            both.forward(tokens, start)
            for _ in range(12):
                for _ in range(int(rng.integers(1, 3))):
                    now = both.tokens
                    new = rng.integers(1, 50, (len(now), int(rng.integers(1, 4))))
                    if not now.shape[1]:
                        break
                    both.forward(np.concatenate([now, new], 1), now.shape[1])
                    cache.check()
                if both.tokens.shape[1] > columns + 2 and len(both.tokens) < 12:
                    move(both, rng, ["crop", "reorder", "select", "repeat"][rng.integers(4)])
        cache.drop()
        cache.check()
        assert len(cache.kv) == 0 and cache.stats().n_used == 0
    assert (cache.stats().n_cached > 0) == told


def one(cache, tokens, new=6):
    """Generate `new` tokens after a prompt of one row, as `generate` would."""
    tokens = np.asarray(tokens)[None]
    with cache.generating(tokens) as rows:
        both = Both(rows, [0])
        both.forward(tokens, rows.get_seq_length())
        for token in range(new):
            tokens = np.concatenate([tokens, [[60 + token]]], 1)
            both.forward(tokens, tokens.shape[1] - 1)
        rows.done(tokens)
    return tokens[0]


def test_a_call_interrupted_at_any_line_loses_no_page():
    prompt = list(range(1, 11))

    def observe(cache):
        cache.check()
        if len(cache.kv):  # rows that were interrupted at their end
            gc.collect()
            cache.check()
        assert len(cache.kv) == 0 and cache.stats().n_used == 0
        return cache.kv.match(prompt + [60, 61])

    def call(cache):
        one(cache, prompt, 2)
        one(cache, prompt + [60, 61], 2)

    tracer_of = functools.partial(_Tracer, only=("paged_", "slot_pool", "row_layers"))
    at = 0
    while True:  # after each the prompt is cached in part, as far as it was computed, or not
        cache, tracer = make(20), tracer_of(at)
        with contextlib.suppress(Interrupt), tracer:
            call(cache)
        if not tracer.place:
            break
        found = observe(cache)
        assert found in (0, 8, 12)
        call(cache)  # the keys that are found are right
        assert observe(cache) == 12
        at += 3 + at % 7  # every line of a forward pass comes several times
    assert at > 300


def test_crop():
    cache = make()
    both = Both(cache, [0])
    tokens = np.arange(1, 11)[None]
    both.forward(tokens, 0)
    cache.crop(0)
    assert cache.get_seq_length() == 10
    if VERSION >= (5, 18):
        with pytest.raises(ValueError, match=r"crop\(4\)"):
            cache.crop(4)
        cache.crop(-6)
    else:
        cache.crop(40)
        assert cache.get_seq_length() == 10
        cache.crop(4)
    assert cache.get_seq_length() == 4
    both.plain.crop(-6)
    both.tokens = both.tokens[:, :4]
    both.forward(tokens[:, :7], 4)
    cache.crop(-100)
    assert cache.get_seq_length() == 0


def test_rows_that_a_pool_cannot_hold_leave_the_others_as_they_were():
    cache = make(n_pages=6)
    both = Both(cache, [0, 0])
    tokens = np.arange(1, 13)[None].repeat(2, 0)
    both.forward(tokens, 0)
    with pytest.raises(CapacityError):
        both.forward(np.concatenate([tokens, tokens[:, :1]], 1), 12)
    cache.check()
    assert cache.get_seq_length() == 12 and cache.stats().n_free == 0
    cache.reset()
    assert cache.stats().n_free == 6
    one(cache, range(1, 11))


def test_rows_that_nobody_holds_any_more_give_their_pages_back():
    cache = make()
    context = cache.generating(np.arange(1, 11)[None])
    rows = context.__enter__()
    Both(rows, [0]).forward(np.arange(1, 11)[None], 0)
    assert cache.stats().n_used == 3
    del rows, context
    gc.collect()
    cache.check()
    assert cache.stats().n_used == 0


def test_an_interrupt_while_rows_are_collected_loses_no_page():
    cache = make()
    prompt = np.arange(1, 11, dtype=np.int32)[None]
    rows = PagedRows(cache.pool)
    rows.tell(prompt, np.zeros(1, np.int64), 0)
    Both(rows, [0]).forward(prompt, 0)
    assert cache.stats().n_used == 3
    gc.collect()

    def interrupt(frame, event, arg):
        if "llmds_nb" in frame.f_code.co_filename:  # wherever ours runs, as that of a finalizer
            raise KeyboardInterrupt

    sys.settrace(interrupt)
    try:
        del rows
        gc.collect()
    except KeyboardInterrupt:  # of another object's
        pass
    finally:
        sys.settrace(None)
    gc.collect()
    assert cache.stats().n_used == 0


def test_rows_of_another_number():
    cache = make()
    Both(cache, [0, 0]).forward(np.arange(1, 11)[None].repeat(2, 0), 0)
    with pytest.raises(ValueError, match="3 rows of keys for a cache of 2"):
        Both(cache, [0] * 3).forward(np.arange(1, 12)[None].repeat(3, 0), 10)
    with pytest.raises(IndexError, match="rows"):
        cache.reorder_cache(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="rows, heads, tokens, width"):
        cache.update(torch.zeros(2, 2, 4), torch.zeros(2, 2, 4), 0)
    cache.check()
