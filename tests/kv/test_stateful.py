"""KVCache against a plain model that keeps every sequence's tokens and tensors to itself.

K/V rows are a function of weights, salt, prefix and what `extra` says of it, as in a real model, so
that sharing must be exact; the same machine runs with tensors inside the cache and with an engine's
own tensor outside. A mirror that is told events only must find what `match` finds.
"""

import hashlib
from dataclasses import dataclass, replace

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
RANGE = st.tuples(st.integers(0, 5), st.integers(1, 6), st.sampled_from([0, "0", "a"]))
EXTRA = st.just([]) | st.lists(RANGE.map(lambda r: (r[0], r[0] + r[1], r[2])), max_size=2)


@dataclass
class Seq:
    """A sequence of the model."""

    salt: object
    tokens: list
    extra: list
    weights: int
    committed: int = 0
    unknown: frozenset = frozenset()  # places of tokens that the cache is still to be told

    def copy(self):
        return replace(self, tokens=list(self.tokens))

    def seen(self):
        return [-1 if i in self.unknown else token for i, token in enumerate(self.tokens)]

    def shareable(self, size):
        """How many pages are committed and known."""
        return min([self.committed, *self.unknown]) // size

    def rows(self, start=0, stop=None):
        return rows_of((self.weights, self.salt), self.tokens, self.extra)[start:stop]

    def pages(self, size):
        return pages_of(self.salt, self.tokens, self.extra, size)


def rows_of(root, tokens, extra):
    """K/V of every token, float32[n, 2], depending on all that precedes it."""
    digest, rows = hashlib.sha256(repr(root).encode()), []
    for position, token in enumerate(tokens):
        inside = {(start, key) for start, stop, key in extra if start <= position < stop}
        digest.update(repr((token, sorted(inside, key=repr))).encode())
        rows.append(np.frombuffer(digest.digest()[:2], np.uint8).astype(np.float32))
    return np.array(rows, np.float32).reshape(-1, 2)


def pages_of(salt, tokens, extra, size):
    """What makes each full page what it is: the salt, and (tokens, parts) of all pages to there."""
    chain, found = (salt,), []
    for end in range(size, len(tokens) + 1, size):
        parts = {(a, min(b, end), key) for a, b, key in extra if a < end and b > end - size}
        chain = (*chain, (tuple(tokens[end - size : end]), frozenset(parts)))
        found.append(chain)
    return found


class CacheMachine(RuleBasedStateMachine):
    inside = True
    size = 2
    eviction = "lru"
    hash_mask = -1
    max_events = 500

    def __init__(self):
        super().__init__()
        self.cache = KVCache(
            P,
            self.size,
            kv_shape=(2,) if self.inside else None,
            dtype=np.float32,
            eviction=self.eviction,
            max_events=self.max_events,
        )
        self.cache._cache_state.arrays.meta[s.HASH_MASK] &= self.hash_mask
        self.outside = np.zeros((P, self.size, 2), np.float32)
        self.seqs = {}  # id -> Seq
        self.pins = {}  # handle -> (salt, tokens, extra), None for one that is older than a reset
        self.committed = set()  # pages of committed prompts since the last reset
        self.weights = 0
        self.mirror = {}  # (salt, parent, tokens, parts) -> hash

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
        seq.committed = max(seq.committed, n)
        if seq.weights == self.weights:
            self.committed.update(seq.pages(self.size)[: seq.shareable(self.size)])

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

    @rule(
        seq_id=IDS, tokens=TOKENS, salt=SALTS, priority=st.integers(-1, 1), kv=st.booleans(),
        extra=EXTRA,
    )  # fmt: skip
    def attach(self, seq_id, tokens, salt, priority, kv, extra):
        seq = Seq(salt, list(tokens), extra, self.weights)
        kv = kv and self.inside
        if seq_id in self.seqs:
            with pytest.raises(ValueError, match="attached already"):
                self.cache.attach(seq_id, tokens, seq.rows() if kv else None, extra=extra)
            return
        matched = self.cache.match(tokens, salt=salt, extra=extra)
        given = seq.rows() if kv else None
        how = {"salt": salt, "priority": priority, "extra": extra or None}
        if self.refused(lambda: self.cache.attach(seq_id, tokens, given, **how)):
            return
        hits = self.result
        assert hits == matched and hits % self.size == 0
        assert self.committed.issuperset(seq.pages(self.size)[: hits // self.size])
        self.seqs[seq_id] = seq
        self.run_engine()
        if not kv:
            self.write(seq_id, hits, seq.rows(hits))
        self.note_commit(seq_id, len(tokens) if kv else hits)

    @rule(data=st.data())
    def attach_many(self, data):
        ids = data.draw(st.lists(IDS.filter(lambda i: i not in self.seqs), unique=True, max_size=3))
        new = [Seq(*(data.draw(x) for x in (SALTS, TOKENS, EXTRA)), self.weights) for _ in ids]
        flat = np.array([token for seq in new for token in seq.tokens], np.int32)
        indptr = np.cumsum([0] + [len(seq.tokens) for seq in new])
        how = {"salts": [seq.salt for seq in new], "extras": [seq.extra for seq in new]}
        if self.refused(lambda: self.cache.attach_many(ids, flat, indptr, **how)):
            return
        self.run_engine()
        for seq_id, seq, hits in zip(ids, new, self.result, strict=True):
            self.seqs[seq_id] = seq
            self.write(seq_id, int(hits), seq.rows(hits))
            self.note_commit(seq_id, int(hits))

    @precondition(lambda self: self.seqs)
    @rule(data=st.data(), tokens=TOKENS, kv=st.booleans())
    def append(self, data, tokens, kv):
        seq_id = data.draw(st.sampled_from(sorted(self.seqs)))
        seq = self.seqs[seq_id]
        longer, n = replace(seq, tokens=seq.tokens + tokens), len(seq.tokens)
        kv = kv and self.inside
        given = longer.rows(n) if kv else None
        if self.refused(lambda: self.cache.append(seq_id, tokens, given)):
            return
        self.run_engine()
        if tokens:
            self.note_commit(seq_id, n)
        seq.tokens += tokens
        assert np.array_equal(self.result, self.cache.slot_mapping(seq_id, n, len(seq.tokens)))
        if kv and tokens:
            self.note_commit(seq_id, len(seq.tokens))
        else:
            self.write(seq_id, n, seq.rows(n))

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
            self.note_commit(seq_id, len(seq.tokens))
            seq.tokens.append(token)
            self.write(seq_id, len(seq.tokens) - 1, seq.rows(len(seq.tokens) - 1))

    @precondition(lambda self: self.seqs)
    @rule(data=st.data(), tokens=TOKENS)
    def reserve(self, data, tokens):
        """The engine computes with tokens that the cache is not told yet."""
        seq_id = data.draw(st.sampled_from(sorted(self.seqs)))
        seq = self.seqs[seq_id]
        n = len(seq.tokens)
        if self.refused(lambda: self.cache.reserve(seq_id, len(tokens))):
            return
        self.run_engine()
        seq.tokens += tokens
        seq.unknown |= set(range(n, len(seq.tokens)))
        assert np.array_equal(self.result, self.cache.slot_mapping(seq_id, n, len(seq.tokens)))
        self.write(seq_id, n, seq.rows(n))

    @precondition(lambda self: any(seq.unknown for seq in self.seqs.values()))
    @rule(data=st.data(), bad=st.sampled_from([None, None, None, "known", "behind"]))
    def set_tokens(self, data, bad):
        seq_id = data.draw(st.sampled_from([i for i, seq in self.seqs.items() if seq.unknown]))
        seq = self.seqs[seq_id]
        start = data.draw(st.integers(0, max(seq.unknown)))
        stop = data.draw(st.integers(start, len(seq.tokens)))
        tokens = seq.tokens[start:stop]
        known = [i for i in range(start, stop) if i not in seq.unknown]
        if bad == "known" and known:
            tokens[known[-1] - start] += 1
            with pytest.raises(ValueError, match=f"token {known[-1]} of sequence {seq_id} is"):
                self.cache.set_tokens(seq_id, start, tokens)
        elif bad == "behind":
            with pytest.raises(ValueError, match=f"to {len(seq.tokens) + 1} of a sequence of"):
                self.cache.set_tokens(seq_id, start, [*seq.tokens[start:], 1])
        elif not self.refused(lambda: self.cache.set_tokens(seq_id, start, tokens)):
            self.run_engine()
            seq.unknown -= set(range(start, stop))
            self.note_commit(seq_id, 0)

    @precondition(lambda self: self.seqs)
    @rule(data=st.data())
    def commit(self, data):
        seq_id = data.draw(st.sampled_from(sorted(self.seqs)))
        n = data.draw(st.integers(0, len(self.seqs[seq_id].tokens) + 1))
        if n > len(self.seqs[seq_id].tokens):
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
        seq = self.seqs[seq_id]
        start = data.draw(st.integers(0, len(seq.tokens)))
        stop = data.draw(st.integers(start, len(seq.tokens)))
        noise = np.full((stop - start, 2), -1, np.float32)
        others = {i: self.read(i) for i in self.seqs if i != seq_id}
        try:
            if self.refused(lambda: self.cache.write(seq_id, start, noise)):
                return
        except ValueError as error:
            # The page may have been committed by another sequence that forked this one, and by
            # tokens behind the ones that a truncation left.
            assert "shared by prefix" in str(error) and seq.weights == self.weights
            written = start // self.size
            assert any(self.begins(chain, seq, written) for chain in self.committed)
            return
        assert (self.read(seq_id)[start:stop] == -1).all()
        for other, rows in others.items():
            assert np.array_equal(self.read(other), rows)
        self.cache.write(seq_id, start, seq.rows(start, stop))

    def begins(self, chain, seq, page):
        """Whether a committed chain has the page of this number, as far as the sequence reaches."""
        if chain[0] != seq.salt or len(chain) < page + 2:
            return False
        tokens = [token for part, _ in chain[1 : page + 2] for token in part]
        own = seq.tokens[: (page + 1) * self.size]
        return tokens[: len(own)] == own

    @precondition(lambda self: self.seqs)
    @rule(data=st.data(), new_id=IDS)
    def fork(self, data, new_id):
        seq_id = data.draw(st.sampled_from(sorted(self.seqs)))
        if new_id in self.seqs:
            with pytest.raises(ValueError, match="attached already"):
                self.cache.fork(seq_id, new_id)
            return
        self.cache.fork(seq_id, new_id)
        self.seqs[new_id] = self.seqs[seq_id].copy()

    @precondition(lambda self: self.seqs)
    @rule(data=st.data(), bad=st.sampled_from([None, None, "absent", "twice"]))
    def reorder(self, data, bad):
        ids = data.draw(st.lists(st.sampled_from(sorted(self.seqs)), unique=True, min_size=1))
        parents = [data.draw(st.sampled_from(sorted(self.seqs))) for _ in ids]
        if bad == "absent":
            with pytest.raises(KeyError, match="77"):
                self.cache.reorder(ids, [*parents[:-1], 77])
        elif bad == "twice":
            with pytest.raises(ValueError, match="stands twice"):
                self.cache.reorder([*ids, ids[0]], [*parents, parents[0]])
        else:
            self.cache.reorder(ids, parents)
            old = dict(self.seqs)
            for seq_id, parent in zip(ids, parents, strict=True):
                self.seqs[seq_id] = old[parent].copy()

    @precondition(lambda self: self.seqs)
    @rule(data=st.data())
    def truncate(self, data):
        seq_id = data.draw(st.sampled_from(sorted(self.seqs)))
        seq = self.seqs[seq_id]
        n = data.draw(st.integers(0, len(seq.tokens)))
        self.cache.truncate(seq_id, n)
        seq.tokens, seq.committed = seq.tokens[:n], min(seq.committed, n)
        seq.unknown &= set(range(n))

    @precondition(lambda self: self.seqs)
    @rule(data=st.data())
    def detach(self, data):
        seq_id = data.draw(st.sampled_from(sorted(self.seqs)))
        seq = self.seqs.pop(seq_id)
        self.cache.detach(seq_id)
        with pytest.raises(KeyError, match=str(seq_id)):
            self.cache.length(seq_id)
        # Full committed pages of known tokens stay cached.
        if seq.weights == self.weights:
            found = self.cache.match(seq.tokens, salt=seq.salt, extra=seq.extra)
            assert found >= seq.shareable(self.size) * self.size

    @rule(tokens=TOKENS, salt=SALTS, extra=EXTRA)
    def pin(self, tokens, salt, extra):
        handle = self.cache.pin(tokens, salt=salt, extra=extra)
        n = self.cache.match(tokens, salt=salt, extra=extra)
        self.pins[handle] = salt, tokens[:n], extra

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

    @rule(often=st.integers(0, 3))
    def reset(self, often):
        if often:  # else too little stays to be reset
            return
        self.mirror_events()
        before = self.cache.stats()
        assert self.cache.reset() == self.cache.stats().n_free - before.n_free
        assert self.cache.stats().n_cached == self.cache.stats().n_evictable == 0
        if self.max_events:
            assert [event.kind for event in self.cache.events()] == ["cleared"]
        self.weights += 1
        self.committed, self.mirror = set(), {}
        self.pins = dict.fromkeys(self.pins)

    @rule()
    def compact(self):
        moves = self.cache.compact()
        self.run_engine(moves)
        used = np.flatnonzero(self.cache._cache_state.arrays.page[:, s.STATE])
        assert np.array_equal(used, np.arange(len(used)))

    @rule(salt=SALTS, quota=st.none() | st.integers(0, P + 1))
    def set_quota(self, salt, quota):
        self.cache.set_quota(salt, quota)

    def mirror_events(self):
        for event in self.cache.events() if self.max_events else ():
            if event.kind == "stored":
                tokens = tuple(event.tokens.tolist())
                place = event.salt, type(event.salt), event.parent, tokens, frozenset(event.extra)
                assert place not in self.mirror
                self.mirror[place] = event.hash
            else:
                assert event.kind == "removed"
                self.mirror = {p: h for p, h in self.mirror.items() if h != event.hash}

    def mirrored(self, seq):
        parent, n = None, 0
        for chain in seq.pages(self.size):
            parent = self.mirror.get((seq.salt, type(seq.salt), parent, *chain[-1]))
            if parent is None:
                break
            n += self.size
        return n

    @invariant()
    def agrees(self):
        self.cache.check()
        self.mirror_events()
        assert len(self.cache) == len(self.seqs)
        for seq_id, seq in self.seqs.items():
            assert seq_id in self.cache
            assert self.cache.tokens(seq_id).tolist() == seq.seen()
            assert np.array_equal(self.read(seq_id), seq.rows())
            found = self.cache.match(seq.tokens, salt=seq.salt, extra=seq.extra)
            assert self.committed.issuperset(seq.pages(self.size)[: found // self.size])
            if self.max_events:
                assert self.mirrored(seq) == found
        for pin in self.pins.values():
            if pin is not None:
                salt, tokens, extra = pin
                assert self.cache.match(tokens, salt=salt, extra=extra) == len(tokens)


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
    max_events = 0


TestEveryHashCollides = CollidingMachine.TestCase


class OldestFirst:
    """A custom policy: the deepest, then the least used page goes first."""

    def keys(self, events):
        assert len(events.pages) and (events.inserted | events.touched | events.released).all()
        return events.uses - events.depths / 100


class CustomMachine(CacheMachine):
    eviction = OldestFirst()


TestCustomPolicy = CustomMachine.TestCase


def tighten(cache):
    """Take from the arena all that is not in use, so that nothing more than was asked for fits."""
    state = cache._cache_state
    used = state.arrays.arena[: state.arrays.meta[s.ARENA_TOP]]
    state.handle.replace(state.arrays._replace(arena=used.copy()))


class TightMachine(CacheMachine):
    """The arena has no room but what a kernel has asked for before it took it."""

    inside = False

    @invariant()
    def grows_no_more_than_asked(self):
        tighten(self.cache)


TestTightArena = TightMachine.TestCase
