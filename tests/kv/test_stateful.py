"""KVCache against a plain model that keeps every sequence's tokens and tensors to itself.

K/V rows are a function of salt and prefix, as in a real model, so that sharing must be exact; the
same machine runs with tensors inside the cache and with an engine's own tensor outside.
"""

import hashlib

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmds_nb import CapacityError, KVCache
from llmds_nb.kv.kernels import state as s

P = 9
TOKENS = st.lists(st.integers(0, 2), max_size=9)
SALTS = st.sampled_from([0, 1, "0", b"0"])
IDS = st.integers(0, 5)


def rows_of(salt, tokens):
    """K/V of every token, float32[n, 2], depending on all that precedes it."""
    digest, rows = hashlib.sha256(repr(salt).encode()), []
    for token in tokens:
        digest.update(bytes([token]))
        rows.append(np.frombuffer(digest.digest()[:2], np.uint8).astype(np.float32))
    return np.array(rows, np.float32).reshape(-1, 2)


class CacheMachine(RuleBasedStateMachine):
    inside = True
    size = 2
    eviction = "lru"
    hash_mask = -1

    def __init__(self):
        super().__init__()
        self.cache = KVCache(
            P,
            self.size,
            kv_shape=(2,) if self.inside else None,
            dtype=np.float32,
            eviction=self.eviction,
        )
        self.cache._cache_state.arrays.meta[s.HASH_MASK] &= self.hash_mask
        self.outside = np.zeros((P, self.size, 2), np.float32)
        self.seqs = {}  # id -> [salt, tokens, committed, written]
        self.pins = {}  # handle -> (salt, tokens)
        self.committed = set()  # (salt, tokens of a committed chain of full pages)
        self.full = CapacityError, "pages lack"

    # What the engine does between calls when the cache holds no tensors.
    def run_engine(self, renames=None):
        if not self.inside:
            src, dst = renames or self.cache.pending_copies()
            self.outside[dst] = self.outside[src]

    def write(self, seq_id, start, rows):
        if self.inside:
            self.cache.write(seq_id, start, rows)
        else:
            slots = self.cache.slot_mapping(seq_id, start, start + len(rows))
            self.outside.reshape(-1, 2)[slots] = rows

    def read(self, seq_id):
        if self.inside:
            return self.cache.get(seq_id)
        n = self.cache.length(seq_id)
        return self.outside.reshape(-1, 2)[self.cache.slot_mapping(seq_id, 0, n)]

    def note_commit(self, seq_id, n):
        seq = self.seqs[seq_id]
        seq[2] = max(seq[2], n)
        for k in range(1, seq[2] // self.size + 1):
            self.committed.add((seq[0], tuple(seq[1][: k * self.size])))

    def refused(self, call):
        """Whether a call raised CapacityError; it must then have changed nothing."""
        state = self.cache._cache_state
        domains = list(state.domains.values())  # a new salt may still get a row: harmless
        before = state.arrays.seq_hot.copy(), state.arrays.domain[domains]
        stats = self.cache.stats()
        try:
            self.result = call()
        except CapacityError as error:
            assert "pages lack" in str(error)
            assert self.cache.stats() == stats
            live = before[0][:, 0] >= 0
            assert np.array_equal(
                state.arrays.seq_hot[: len(live)][live][:, :5], before[0][live][:, :5]
            )
            assert np.array_equal(state.arrays.domain[domains], before[1])
            return True
        return False

    @rule(seq_id=IDS, tokens=TOKENS, salt=SALTS, priority=st.integers(-1, 1), kv=st.booleans())
    def attach(self, seq_id, tokens, salt, priority, kv):
        rows = rows_of(salt, tokens)
        kv = kv and self.inside
        if seq_id in self.seqs:
            with pytest.raises(ValueError, match="attached already"):
                self.cache.attach(seq_id, tokens)
            return
        matched = self.cache.match(tokens, salt=salt)
        if self.refused(
            lambda: self.cache.attach(
                seq_id, tokens, rows if kv else None, salt=salt, priority=priority
            )
        ):
            return
        hits = self.result
        assert hits == matched and hits % self.size == 0
        for k in range(1, hits // self.size + 1):
            assert (salt, tuple(tokens[: k * self.size])) in self.committed
        self.seqs[seq_id] = [salt, list(tokens), 0, 0]
        self.run_engine()
        if not kv:
            self.write(seq_id, hits, rows[hits:])
        self.note_commit(seq_id, len(tokens) if kv else hits)

    @rule(data=st.data())
    def attach_many(self, data):
        ids = data.draw(st.lists(IDS.filter(lambda i: i not in self.seqs), unique=True, max_size=3))
        prompts = [data.draw(TOKENS) for _ in ids]
        salts = [data.draw(SALTS) for _ in ids]
        flat = np.array([token for p in prompts for token in p], np.int32)
        indptr = np.cumsum([0] + [len(p) for p in prompts])
        if self.refused(lambda: self.cache.attach_many(ids, flat, indptr, salts=salts)):
            return
        self.run_engine()
        for seq_id, tokens, salt, hits in zip(ids, prompts, salts, self.result, strict=True):
            self.seqs[seq_id] = [salt, list(tokens), 0, 0]
            self.write(seq_id, int(hits), rows_of(salt, tokens)[hits:])
            self.note_commit(seq_id, int(hits))

    @precondition(lambda self: self.seqs)
    @rule(data=st.data(), tokens=TOKENS)
    def append(self, data, tokens):
        seq_id = data.draw(st.sampled_from(sorted(self.seqs)))
        seq = self.seqs[seq_id]
        if self.refused(lambda: self.cache.append(seq_id, tokens)):
            return
        self.run_engine()
        n = len(seq[1])
        if tokens:
            self.note_commit(seq_id, n)
        seq[1] += tokens
        assert np.array_equal(self.result, self.cache.slot_mapping(seq_id, n, len(seq[1])))
        self.write(seq_id, n, rows_of(seq[0], seq[1])[n:])

    @precondition(lambda self: self.seqs)
    @rule(data=st.data())
    def append_many(self, data):
        ids = data.draw(st.lists(st.sampled_from(sorted(self.seqs)), unique=True))
        tokens = [data.draw(st.integers(0, 2)) for _ in ids]
        if self.refused(lambda: self.cache.append_many(ids, tokens)):
            return
        self.run_engine()
        for seq_id, token in zip(ids, tokens, strict=True):
            seq = self.seqs[seq_id]
            self.note_commit(seq_id, len(seq[1]))
            seq[1].append(token)
            self.write(seq_id, len(seq[1]) - 1, rows_of(seq[0], seq[1])[-1:])

    @precondition(lambda self: self.seqs)
    @rule(data=st.data())
    def commit(self, data):
        seq_id = data.draw(st.sampled_from(sorted(self.seqs)))
        n = data.draw(st.integers(0, len(self.seqs[seq_id][1]) + 1))
        if n > len(self.seqs[seq_id][1]):
            with pytest.raises(ValueError, match="n_tokens is more than"):
                self.cache.commit(seq_id, n)
            return
        table = self.cache.page_table(seq_id).indices.tolist()
        self.cache.commit(seq_id, n)
        assert self.cache.page_table(seq_id).indices.tolist() == table
        self.note_commit(seq_id, n)

    @precondition(lambda self: self.seqs)
    @rule(data=st.data())
    def write_noise(self, data):
        """A write to one sequence is seen by no other; below the shared boundary it is refused."""
        if not self.inside:
            return
        seq_id = data.draw(st.sampled_from(sorted(self.seqs)))
        salt, tokens, _, _ = self.seqs[seq_id]
        start = data.draw(st.integers(0, len(tokens)))
        stop = data.draw(st.integers(start, len(tokens)))
        noise = np.full((stop - start, 2), -1, np.float32)
        others = {i: self.read(i) for i in self.seqs if i != seq_id}
        try:
            if self.refused(lambda: self.cache.write(seq_id, start, noise)):
                return
        except ValueError as error:
            # The page may have been committed by another sequence that forked this one, and by
            # tokens behind the ones that a truncation left.
            assert "shared by prefix" in str(error)
            n = len(tokens)
            assert any(
                own == salt and len(chain) > start and chain[:n] == tuple(tokens[: len(chain)])
                for own, chain in self.committed
            )
            return
        assert (self.read(seq_id)[start:stop] == -1).all()
        for other, rows in others.items():
            assert np.array_equal(self.read(other), rows)
        self.cache.write(seq_id, start, rows_of(salt, tokens)[start:stop])

    @precondition(lambda self: self.seqs)
    @rule(data=st.data(), new_id=IDS)
    def fork(self, data, new_id):
        seq_id = data.draw(st.sampled_from(sorted(self.seqs)))
        if new_id in self.seqs:
            with pytest.raises(ValueError, match="attached already"):
                self.cache.fork(seq_id, new_id)
            return
        self.cache.fork(seq_id, new_id)
        salt, tokens, committed, written = self.seqs[seq_id]
        self.seqs[new_id] = [salt, list(tokens), committed, written]

    @precondition(lambda self: self.seqs)
    @rule(data=st.data())
    def truncate(self, data):
        seq_id = data.draw(st.sampled_from(sorted(self.seqs)))
        seq = self.seqs[seq_id]
        n = data.draw(st.integers(0, len(seq[1])))
        self.cache.truncate(seq_id, n)
        seq[1], seq[2] = seq[1][:n], min(seq[2], n)

    @precondition(lambda self: self.seqs)
    @rule(data=st.data())
    def detach(self, data):
        seq_id = data.draw(st.sampled_from(sorted(self.seqs)))
        salt, tokens, committed, _ = self.seqs.pop(seq_id)
        self.cache.detach(seq_id)
        with pytest.raises(KeyError, match=str(seq_id)):
            self.cache.length(seq_id)
        # Full committed pages stay cached.
        assert self.cache.match(tokens, salt=salt) >= committed // self.size * self.size

    @rule(tokens=TOKENS, salt=SALTS)
    def pin(self, tokens, salt):
        handle = self.cache.pin(tokens, salt=salt)
        self.pins[handle] = salt, tokens[: self.cache.match(tokens, salt=salt)]

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data):
        handle = data.draw(st.sampled_from(sorted(self.pins)))
        del self.pins[handle]
        self.cache.unpin(handle)
        with pytest.raises(KeyError, match=str(handle)):
            self.cache.unpin(handle)

    @rule(n=st.integers(0, P))
    def evict(self, n):
        evictable = self.cache.stats().n_evictable
        assert self.cache.evict(n) == min(n, evictable)

    @rule()
    def compact(self):
        moves = self.cache.compact()
        self.run_engine(moves)
        used = np.flatnonzero(self.cache._cache_state.arrays.page[:, s.STATE])
        assert np.array_equal(used, np.arange(len(used)))

    @rule(salt=SALTS, quota=st.none() | st.integers(0, P + 1))
    def set_quota(self, salt, quota):
        self.cache.set_quota(salt, quota)

    @invariant()
    def agrees(self):
        self.cache.check()
        assert len(self.cache) == len(self.seqs)
        for seq_id, (salt, tokens, _, _) in self.seqs.items():
            assert seq_id in self.cache
            assert self.cache.tokens(seq_id).tolist() == tokens
            assert np.array_equal(self.read(seq_id), rows_of(salt, tokens))
        for salt, tokens in self.pins.values():
            assert self.cache.match(tokens, salt=salt) == len(tokens)


TestTensorsInside = CacheMachine.TestCase


class OutsideMachine(CacheMachine):
    inside = False
    size = 4
    eviction = "path-lrfu"


TestTensorsOutside = OutsideMachine.TestCase


class CollidingMachine(CacheMachine):
    """Every hash is the same: nothing may change but the time it takes."""

    size = 1
    hash_mask = 0
    eviction = "lfu"


TestEveryHashCollides = CollidingMachine.TestCase


class OldestFirst:
    """A custom policy: the deepest, then the least used page goes first."""

    def keys(self, events):
        assert len(events.pages) and (events.inserted | events.touched | events.released).all()
        return events.uses - events.depths / 100


class CustomMachine(CacheMachine):
    eviction = OldestFirst()


TestCustomPolicy = CustomMachine.TestCase
