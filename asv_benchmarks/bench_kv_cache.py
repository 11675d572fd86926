"""KVCache beside a paged KV manager in plain Python (plain_kv.py).

Pages of 512 tokens unless a parameter says otherwise. vLLM and SGLang are not run here; a study on
a machine of this kind (vLLM 0.33.0, SGLang 0.5.23, one process, medians) measured, in microseconds:

    decode step, vLLM allocate_slots, 256 / 1,024 running      2,852 / 9,336
    allocation of a prompt of 1,024 to 2,047 tokens, vLLM      27-41 a sequence
    match of 4,096 cached tokens, SGLang in Python / Rust      96 / 12.4
    match of 32,768, SGLang in Rust, page 512 / page 16        52.5 / 56.6
    evict one page among 10,000 leaves, SGLang in Python       18,200
"""

import copy
import gzip
import itertools
import json
from functools import cache

import numpy as np

from . import ours
from ._support.corpora import DATA
from ._support.plain_kv import PlainKV

IMPLS = ["llmds_nb", "plain Python"]
WITH_CALLS = ["llmds_nb", "llmds_nb-calls", "plain Python"]
STEPS = 50
_fresh = itertools.count()


def _made(impl, n_pages, page_size=512, **options):
    if impl == "plain Python":
        return PlainKV(n_pages, page_size)
    return ours("KVCache")(n_pages, page_size, **options)


def _prompts(impl, n, size):
    """n prompts that were never seen before, in the form each implementation takes best."""
    tokens = np.random.default_rng(0).integers(0, 2**15, (n, size), np.int32)
    tokens[:, 0] = [next(_fresh) for _ in range(n)]
    return tokens.tolist() if impl == "plain Python" else list(tokens)


def _turn_over(kv, prompts, seq_id=1 << 40):
    """Attach, commit and detach each prompt, which leaves its full pages cached."""
    for prompt in prompts:
        kv.attach(seq_id, prompt)
        kv.commit(seq_id, len(prompt))
        kv.detach(seq_id)


def _attach_all(kv, impl, prompts):
    """Attach the prompts as sequences 0, 1, ..., in one call where the implementation has it."""
    if impl == "llmds_nb":
        ends = np.cumsum([0, *map(len, prompts)])
        kv.attach_many(np.arange(len(prompts)), np.concatenate(prompts), ends)
    else:
        for seq_id, prompt in enumerate(prompts):
            kv.attach(seq_id, prompt)


class Decode:
    """50 decode steps: `append_many` with one token for each of n sequences of 1,024 to 2,047.

    The prompts are committed before, as after a prefill.
    """

    params = ([256, 1024], IMPLS)
    param_names = ("running", "impl")
    version = "2"
    number = 1

    def setup(self, running, impl):
        self.kv, self.ids, prompts, self.tokens = self.built(running, impl)
        for seq_id in range(running):
            self.kv.detach(seq_id)
        self.kv.evict(running * 5)
        _attach_all(self.kv, impl, prompts)
        for seq_id, prompt in enumerate(prompts):
            self.kv.commit(seq_id, len(prompt))

    @staticmethod
    @cache
    def built(running, impl):
        rng = np.random.default_rng(0)
        kv = _made(impl, running * 5)
        sizes = rng.integers(1024, 2048, running).tolist()
        prompts = [
            prompt[:size] for prompt, size in zip(_prompts(impl, running, 2048), sizes, strict=True)
        ]
        _attach_all(kv, impl, prompts)
        ids, tokens = np.arange(running), rng.integers(0, 2**15, (STEPS, running), np.int32)
        if impl == "plain Python":
            return kv, ids.tolist(), prompts, tokens.tolist()
        return kv, ids, prompts, list(tokens)

    def time_50_steps(self, running, impl):
        append_many, ids = self.kv.append_many, self.ids
        for tokens in self.tokens:
            append_many(ids, tokens)


class Attach:
    """64 prompts of 1,500 tokens, of which nothing or every full page is cached."""

    params = (["new", "cached"], WITH_CALLS)
    param_names = ("prompts", "impl")
    version = "1"
    number = 1

    def setup(self, prompts, impl):
        self.kv, self.prompts = self.built(prompts, impl)
        for seq_id in range(64):
            self.kv.detach(seq_id)
        if impl == "llmds_nb":
            self.ids, self.ends = np.arange(64), np.arange(65) * 1500
            self.tokens = np.concatenate(self.prompts)

    @staticmethod
    @cache
    def built(prompts, impl):
        kv, texts = _made(impl, 256), _prompts(impl, 64, 1500)
        if prompts == "cached":
            _turn_over(kv, texts)
        _attach_all(kv, impl, texts)
        return kv, texts

    def time_attach_64(self, prompts, impl):
        if impl == "llmds_nb":
            self.kv.attach_many(self.ids, self.tokens, self.ends)
        else:
            attach = self.kv.attach
            for seq_id, prompt in enumerate(self.prompts):
                attach(seq_id, prompt)


class Match:
    """16 look-ups of fully cached prompts that share their first 2,048 tokens."""

    params = ([4096, 32_768], [16, 512], IMPLS)
    param_names = ("tokens", "page_size", "impl")
    version = "1"

    def setup(self, tokens, page_size, impl):
        self.kv, self.prompts = self.built(tokens, page_size, impl)

    @staticmethod
    @cache
    def built(tokens, page_size, impl):
        kv = _made(impl, 16 * tokens // page_size, page_size)
        prompts = _prompts(impl, 16, tokens)
        for prompt in prompts:
            prompt[:2048] = prompts[0][:2048]
        _turn_over(kv, prompts)
        if {kv.match(prompt) for prompt in prompts} != {tokens}:
            raise RuntimeError("a cached prompt was not found")
        return kv, prompts

    def time_match_16(self, tokens, page_size, impl):
        match = self.kv.match
        for prompt in self.prompts:
            match(prompt)


class Evict:
    """100 pages evicted from 10,000 leaves, in one call or one by one."""

    params = (WITH_CALLS,)
    param_names = ("impl",)
    version = "1"
    number = 1

    def setup(self, impl):
        self.kv = self.built(impl)
        _turn_over(self.kv, _prompts(impl, 100, 16))

    @staticmethod
    @cache
    def built(impl):
        kv = _made(impl, 10_000, 16)
        _turn_over(kv, _prompts(impl, 10_000, 16))
        return kv

    def time_evict_100(self, impl):
        if impl == "llmds_nb-calls":
            for _ in range(100):
                self.kv.evict(1)
        else:
            self.kv.evict(100)


class Tables:
    """20 page tables of 256 sequences of 1,500 tokens; "-out" fills the caller's buffers."""

    params = ([16, 512], ["llmds_nb", "llmds_nb-out", "plain Python"])
    param_names = ("page_size", "impl")
    version = "1"

    def setup(self, page_size, impl):
        self.kv, self.ids, csr, dense = self.built(page_size, impl)
        self.csr, self.dense = (
            ({"out": csr}, {"out": dense}) if impl == "llmds_nb-out" else ({}, {})
        )

    @staticmethod
    @cache
    def built(page_size, impl):
        kv = _made(impl, 256 * (1500 // page_size + 1), page_size)
        _attach_all(kv, impl, _prompts(impl, 256, 1500))
        ids = list(range(256)) if impl == "plain Python" else np.arange(256)
        return kv, ids, kv.page_table(ids), kv.block_table(ids)

    def time_page_table(self, page_size, impl):
        for _ in range(20):
            self.kv.page_table(self.ids, **self.csr)

    def time_block_table(self, page_size, impl):
        for _ in range(20):
            self.kv.block_table(self.ids, **self.dense)


class Growth:
    """A full cache of n pages of 4 tokens: what a request costs must not depend on n."""

    params = ([1_000, 100_000, 1_000_000], IMPLS)
    param_names = ("pages", "impl")
    version = "1"
    number = 1
    timeout = 300

    def setup(self, pages, impl):
        if pages > 100_000 and impl == "plain Python":
            raise NotImplementedError("takes a gigabyte")
        self.kv, self.known, self.ids, running = self.built(pages, impl)
        for seq_id in range(16):
            self.kv.detach(seq_id)
        _attach_all(self.kv, impl, running)
        self.new = _prompts(impl, 20, 256)

    @staticmethod
    @cache
    def built(pages, impl):
        kv = _made(impl, pages, 4)
        texts = _prompts(impl, pages // 64 + 1, 256)
        _turn_over(kv, texts)
        running = _prompts(impl, 16, 4)
        _attach_all(kv, impl, running)
        chosen = np.random.default_rng(1).integers(len(texts) // 2, len(texts), 100)
        ids = list(range(16)) if impl == "plain Python" else np.arange(16)
        return kv, [texts[i] for i in chosen], ids, running

    def time_append_64_to_16_sequences(self, pages, impl):
        append_many, ids = self.kv.append_many, self.ids
        for _ in range(64):
            append_many(ids, ids)

    def time_match_100(self, pages, impl):
        match = self.kv.match
        for prompt in self.known:
            match(prompt)

    def time_20_prompts_come_and_go(self, pages, impl):
        _turn_over(self.kv, self.new)


class Beams:
    """20 steps of beam search: 16 requests of 1,000 tokens with 4 beams, pages of 16."""

    params = (["llmds_nb", "llmds_nb-calls"],)
    param_names = ("impl",)
    version = "1"
    number = 1

    def setup(self, impl):
        self.kv = copy.copy(self.built())
        rng = np.random.default_rng(0)
        self.ids = np.arange(64)
        self.parents = [self.ids // 4 * 4 + rng.integers(0, 4, 64) for _ in range(20)]

    @staticmethod
    @cache
    def built():
        kv = _made("llmds_nb", 64 * 80, 16)
        for request, prompt in enumerate(_prompts("llmds_nb", 16, 1000)):
            kv.attach(4 * request, prompt)
            kv.commit(4 * request, 1000)
            for beam in range(1, 4):
                kv.fork(4 * request, 4 * request + beam)
        kv.pending_copies()
        return kv

    def time_20_steps(self, impl):
        tokens = self.ids.astype(np.int32)
        for parents in self.parents:
            if impl == "llmds_nb":
                self.kv.reorder(self.ids, parents)
            else:  # what an engine did before there was `reorder`
                for i, parent in enumerate(parents.tolist()):
                    self.kv.fork(parent, 100 + i)
                self.kv.detach(self.ids)
                for i in range(64):
                    self.kv.fork(100 + i, i)
                self.kv.detach(self.ids + 100)
            self.kv.append_many(self.ids, tokens)
            self.kv.pending_copies()


class Mirrored:
    """100 prompts of 512 tokens come and go in a full cache; with events, which are taken."""

    params = ([0, 10_000], ["plain", "keyed"])
    param_names = ("max_events", "tokens")
    version = "1"
    number = 1

    def setup(self, max_events, tokens):
        self.kv = copy.copy(self.built(max_events))
        self.prompts = _prompts("llmds_nb", 100, 512)
        self.extra = [(0, 100, b"an image")] if tokens == "keyed" else None

    @staticmethod
    @cache
    def built(max_events):
        kv = _made("llmds_nb", 2_000, 16, max_events=max_events)
        _turn_over(kv, _prompts("llmds_nb", 100, 512))
        return kv

    def time_100_prompts(self, max_events, tokens):
        for prompt in self.prompts:
            self.kv.attach(0, prompt, extra=self.extra)
            self.kv.commit(0, 512)
            self.kv.detach(0)
        if max_events:
            self.kv.events()

    def time_reset(self, max_events, tokens):
        self.kv.reset()


class Size:
    """Bytes per page beyond its tokens, block tables included, and per sequence besides.

    8,192 pages, all cached and held by 2,048 sequences of 4 pages each.
    """

    params = ([16, 512],)
    param_names = ("page_size",)
    version = "2"

    def setup(self, page_size):
        self.kv = _made("llmds_nb", 8192, page_size)
        prompts = _prompts("llmds_nb", 2048, 4 * page_size)
        _attach_all(self.kv, "llmds_nb", prompts)
        for seq_id in range(2048):
            self.kv.commit(seq_id, 4 * page_size)

    def sequences(self):
        arrays = self.kv._cache_state.arrays
        return arrays.seq_hot.nbytes + arrays.seq_cold.nbytes + arrays.ids.nbytes

    def track_control_bytes_per_page(self, page_size):
        return (self.kv.nbytes - self.sequences()) / 8192 - 4 * page_size

    def track_bytes_per_sequence(self, page_size):
        return self.sequences() / 2048

    track_control_bytes_per_page.unit = track_bytes_per_sequence.unit = "bytes"


class Trace:
    """Replay of the Mooncake conversation trace: full pages found / all hash_ids; n/a without it.

    One token represents a block of 512 tokens. "plain Python" evicts in LRU order.
    """

    params = ([1_000, 5_000, 10_000, 30_000], ["lru", "path-lrfu", "plain Python"])
    param_names = ("pages", "policy")
    version = "1"
    timeout = 300

    def setup(self, pages, policy):
        path = DATA / "traces/mooncake_conversation_trace.jsonl.gz"
        if not path.exists():
            raise NotImplementedError(f"no {path}")
        with gzip.open(path, "rt") as file:
            self.requests = [json.loads(line) for line in file]
        options = {} if policy == "plain Python" else {"eviction": policy}
        self.kv = _made(policy, pages, 1, **options)

    def track_hit_ratio(self, pages, policy):
        found = asked = 0
        for request in self.requests:
            blocks = request["hash_ids"]
            asked += len(blocks)
            full = blocks[: len(blocks) - (request["input_length"] % 512 > 0)]
            tokens = full if policy == "plain Python" else np.array(full, np.int32)
            found += self.kv.attach(0, tokens)
            self.kv.commit(0, len(full))
            self.kv.detach(0)
        return found / asked

    track_hit_ratio.unit = "share of all blocks"
