"""Readers, a writer, a saver and a loader at once: every answer is that of a whole state.

The writer goes round a cycle of calls, after which an object answers as at its beginning. So all
answers that there can be are known: whatever a reader sees, or a loaded file answers, is one of
them.
"""

import itertools
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

import llmds_nb
from llmds_nb import KVCache
from tests._core.examples import TEXTS, still
from tests.cases import structures
from tests.structures.cases import heap

READERS = 2
HANG = 60  # seconds that one call may take


class Work(NamedTuple):
    """What the threads do with one structure."""

    make: Callable[[], Any]
    cycle: list[Callable[[Any], Any]]
    reads: list[Callable[[Any], Any]]


def _vectors(seed):
    return np.random.default_rng(seed).standard_normal((200, 8)).astype(np.float32)


QUERIES = _vectors(9)[:3]
IDS = np.arange(50)
OTHER_TEXTS = ["blue blue ghost", "a red red red fox", "night"]


def _hnsw():
    index = llmds_nb.HNSW(8, quantize=None)
    index.add(_vectors(0))
    return index


def _found(hits):
    return [part.tolist() for part in hits]


def _inverted_index():
    index = llmds_nb.InvertedIndex()
    index.add(range(4), TEXTS)
    return index


def _pipeline():
    pipeline = llmds_nb.RetrievalPipeline(dim=8)
    pipeline.add(range(4), TEXTS, _vectors(0)[:4])
    return pipeline


def _documents():
    pipeline = llmds_nb.RetrievalPipeline(dim=8)
    metadata = [{"a": i, "b": "xy"[i % 2]} for i in range(4)]
    pipeline.add(list("abcd"), TEXTS, _vectors(0)[:4], metadata=metadata)
    return pipeline


def _cache(**settings):
    cache = llmds_nb.KVCache(64, 2, key=b"k", **settings)
    for seq_id in range(4):
        cache.attach(seq_id, [1, 2, 3, 4, seq_id], salt="a")
        cache.commit(seq_id, 5)
    return cache


def _batcher():
    batcher = llmds_nb.ContinuousBatcher(_cache(), clock=still)
    for i in range(3):
        batcher.submit([5, 6, i], max_new_tokens=4)
    return batcher


def _scheduler():
    scheduler = llmds_nb.Scheduler(4, clock=still)
    scheduler.submit_many([5, 6, 7])
    return scheduler


class Submitting:
    """A request that the writer submits and then cancels."""

    def __init__(self, **options):
        self.options, self.id = options, None

    def submit(self, queue):
        tokens = 9 if isinstance(queue, llmds_nb.Scheduler) else [7] * 9
        self.id = queue.submit(tokens, **self.options)

    def cancel(self, queue):
        queue.cancel(self.id)


def _submitting(**options):
    work = Submitting(**options)
    return [work.submit, work.cancel]


def _sketch():
    sketch = llmds_nb.CountMinSketch(256, 3, top=2)
    sketch.add(["a", "b", 7, b"c"], 8)
    return sketch


def _lru():
    lru = llmds_nb.TokenLRU(40)
    for key in "abcd":
        lru.put(key, key * 2, 5)
    return lru


def _admission():
    control = llmds_nb.AdmissionController(token_rate_limit=100, clock=still)
    control.admit(20)
    return control


def _router():
    router = llmds_nb.PrefixRouter(3, page_size=2, max_prefixes=64)
    router.route([1, 2, 3])
    return router


def _allocator():
    pool = llmds_nb.PagedAllocator(12, 4)
    pool.alloc(5)
    return pool


WORK = {
    "HNSW": Work(
        _hnsw,
        [
            lambda i: i.add(_vectors(1)[:50], IDS),
            lambda i: i.add(_vectors(2)[:50], IDS),
            lambda i: i.remove(IDS[:9]),
            lambda i: i.compact(),
            lambda i: i.add(_vectors(0)[:50], IDS),
        ],
        [
            lambda i: _found(i.search(QUERIES, 5, exact=True)),
            lambda i: _found(i.search(QUERIES[:1], 60, exact=True, threads=2)),
        ],
    ),
    "InvertedIndex": Work(
        _inverted_index,
        [
            lambda i: i.add([0, 2, 3], OTHER_TEXTS),
            lambda i: i.remove([0, 3]),
            lambda i: i.compact(),
            lambda i: i.add([0, 2, 3], [TEXTS[0], *TEXTS[2:]]),
        ],
        [
            lambda i: _found(i.search(["red fox sky", "ghost night"], 4)),
            lambda i: _found(i.search("blue red fox", 4)),
            lambda i: _found(i.postings("red")),
            lambda i: i.doc_freq("ghost"),
        ],
    ),
    "RetrievalPipeline": Work(
        _pipeline,
        [
            lambda p: p.add([0, 2, 3], OTHER_TEXTS, _vectors(1)[:3]),
            lambda p: p.remove([0, 3]),
            lambda p: p.add([0, 2, 3], [TEXTS[0], *TEXTS[2:]], _vectors(0)[[0, 2, 3]]),
        ],
        [
            lambda p: _found(p.search(["red fox", "ghost"], 3, vectors=QUERIES[:2])),
            lambda p: _found(p.search("blue sky night", 4, vectors=QUERIES[2])),
            lambda p: p.get([1, 2]),
        ],
    ),
    "RetrievalPipeline-documents": Work(
        _documents,
        [
            lambda p: p.add(list("acd"), OTHER_TEXTS, _vectors(1)[:3], metadata=[{"a": 1}] * 3),
            lambda p: p.remove(["a", "d"]),
            lambda p: p.add(["e"] * 1, ["red"], _vectors(1)[:1], metadata=[{"b": "x", "a": 3}]),
            lambda p: p.remove(["e", "c"]),
            lambda p: p.add(
                list("acd"),
                [TEXTS[0], *TEXTS[2:]],
                _vectors(0)[[0, 2, 3]],
                metadata=[{"a": i, "b": "xy"[i % 2]} for i in (0, 2, 3)],
            ),
        ],
        [
            lambda p: _found(p.search(["red fox", "ghost"], 3, vectors=QUERIES[:2])),
            lambda p: _found(p.search("blue sky", 4, vectors=QUERIES[2], where={"a": {"$lt": 3}})),
            lambda p: _found(p.search("red", 4, vectors=QUERIES[2], group_by="b", diversity=0.5)),
            lambda p: repr(p.documents(["b"])),
            lambda p: [key in p for key in "abe"][1],
        ],
    ),
    "LsaEncoder": Work(
        lambda: llmds_nb.LsaEncoder(2).fit(TEXTS),
        [lambda e: e.fit(OTHER_TEXTS), lambda e: e.fit(TEXTS)],
        [lambda e: e.encode(["red fox", "ghost"]).tolist(), lambda e: e.rank],
    ),
    "StaticEncoder": Work(
        lambda: llmds_nb.StaticEncoder().fit(TEXTS),
        [lambda e: e.fit(OTHER_TEXTS), lambda e: e.fit(TEXTS)],
        [lambda e: e.encode(["red fox red", "ghost"]).tolist(), lambda e: e.n_texts],
    ),
    "Tokenizer": Work(
        lambda: llmds_nb.Tokenizer().fit(TEXTS),
        [lambda t: t.fit(OTHER_TEXTS), lambda t: t.fit("w1 w2 w3"), lambda t: t.encode(TEXTS)],
        [
            lambda t: t.terms,
            lambda t: t.encode(["red ghost w2", "w3"]).ids.tolist(),
            lambda t: (len(t), "fox" in t),
        ],
    ),
    "KVCache": Work(
        _cache,
        [
            lambda c: c.append_many([0, 1, 2, 3], [7, 8, 9, 9]),
            lambda c: c.attach_many([10, 11], [1, 2, 3, 5, 5], [0, 3, 5], salts=["a", "b"]),
            lambda c: c.fork(0, 12),
            lambda c: c.pending_copies(),
            lambda c: c.compact(),
            lambda c: c.detach([10, 11, 12]),
            *(partial(KVCache.truncate, seq_id=i, n_tokens=5) for i in range(4)),
            lambda c: c.pending_copies(),
        ],
        [
            lambda c: c.page_table([0, 1]).last_page_len.tolist(),
            lambda c: c.tokens(0).tolist(),
            lambda c: c.match([1, 2, 3, 4], salt="b"),
            lambda c: c.match([1, 2, 3, 4, 5], salt="a"),
            lambda c: c.stats(salt="b")[-2:],
            lambda c: c.slot_mapping([0, 1], 0, 3).shape,
        ],
    ),
    "ContinuousBatcher": Work(
        _batcher,
        _submitting(max_new_tokens=2),
        [lambda b: b.stats()[:2], lambda b: len(b)],
    ),
    "Scheduler": Work(
        _scheduler,
        _submitting(),
        [lambda q: (q.stats().waiting, q.stats().running), lambda q: q.stats()[:3]],
    ),
    "AdmissionController": Work(
        _admission,
        [lambda a: a.admit(30), lambda a: a.settle(30, 0), lambda a: a.admit(2000)],
        [lambda a: a.stats().available_tokens],
    ),
    "PrefixRouter": Work(
        _router,
        [lambda r: r.add(), lambda r: r.remove(r.replicas[-1])],
        [lambda r: (r.replicas[:3], len(r) in (3, 4)), lambda r: r.stats().replicas],
    ),
    "IndexedHeap": Work(
        heap,
        [
            lambda h: h.push_many([1, 3], [0.1, 9.0]),
            lambda h: h.update_many([5, 7], [0.0, 8.0]),
            lambda h: h.remove_many([1, 3]),
            lambda h: h.update_many([5, 7], [3.0, 1.0]),
        ],
        [lambda h: _found(h.entries()), lambda h: h.peek(), lambda h: h.priority(5)],
    ),
    "TokenLRU": Work(
        _lru,
        [
            lambda c: c.put("e", "ee", 25),
            lambda c: c.evict_until(25),
            lambda c: [c.put(key, key * 2, 5) for key in "abcd"],
            lambda c: c.pop("e", None),
        ],
        [lambda c: c.peek("e"), lambda c: [*c][-1] in "abcde", lambda c: c.stats()[1] % 5],
    ),
    "CountMinSketch": Work(
        _sketch,
        [lambda c: c.add(["a", "b", 7, b"c"], 8), lambda c: c.halve()],
        [
            lambda c: c.estimate(["a", "b", 7, b"c"]).tolist(),
            lambda c: c.top(2).counts.tolist(),
            lambda c: c.total,
        ],
    ),
    "PagedAllocator": Work(
        _allocator,
        [
            lambda p: p.share([0, 1, 4]),
            lambda p: p.alloc(7),
            lambda p: p.free([5, 6, 7, 8, 9, 10, 11]),
            lambda p: p.free([0, 1, 4]),
        ],
        [lambda p: p.refcount(range(12)).tolist(), lambda p: p.stats()[2:5]],
    ),
}


def whole_answers(work):
    """The answers of each read, in every state of the cycle; the third round has no new ones."""
    obj, seen = work.make(), []
    answers: list[set[str]] = [set() for _ in work.reads]
    for _ in range(3):
        before = [len(of_read) for of_read in answers]
        for step in [lambda obj: None, *work.cycle]:
            step(obj)
            for of_read, read in zip(answers, work.reads, strict=True):
                of_read.add(repr(read(obj)))
        seen.append(before != [len(of_read) for of_read in answers])
    assert not seen[2], "the cycle does not come back to where it began"
    return answers


class Crew:
    """The threads of one structure, and what they have found."""

    def __init__(self, work, path):
        self.work, self.path = work, path
        self.obj, self.answers = work.make(), whole_answers(work)
        self.count: Counter[str] = Counter()
        self.faults: list[str] = []
        self.stop = threading.Event()
        self.obj.save(path)

    def run(self, seconds):
        """Let all work for so long; a thread that does not end hangs."""
        roles = [self.write, self.save, self.load, *[self.read] * READERS]
        threads = [threading.Thread(target=self.guard, args=[r], daemon=True) for r in roles]
        for thread in threads:
            thread.start()
        self.stop.wait(seconds)
        self.stop.set()
        for thread in threads:
            thread.join(HANG)
            assert not thread.is_alive(), "a call hangs"

    def guard(self, role):
        try:
            role()
        except BaseException:
            self.faults.append(f"{role.__name__}: {traceback.format_exc()[-1500:]}")
            self.stop.set()

    def write(self):
        while not self.stop.is_set():
            for step in self.work.cycle:
                step(self.obj)
                self.count["writes"] += 1

    def read(self):
        for i in itertools.count():
            if self.stop.is_set():
                return
            self.compare(self.obj)
            self.count["reads"] += 1
            if i % 50 == 0:
                self.obj.check()
                repr(self.obj)

    def save(self):
        while not self.stop.is_set():
            self.save_once()

    def save_once(self):
        self.obj.save(self.path)
        self.count["saves"] += 1

    def load(self):
        while not self.stop.is_set():
            self.load_once()

    def load_once(self):
        loaded = type(self.obj).load(self.path, **self.obj._parts())
        loaded.check()
        self.compare(loaded)
        self.count["loads"] += 1

    def compare(self, obj):
        for read, answers in zip(self.work.reads, self.answers, strict=True):
            found = repr(read(obj))
            assert found in answers, f"an answer of no whole state: {found:.300}"


def test_every_structure_has_work():
    assert {name.partition("-")[0] for name in WORK} == set(structures())


@pytest.mark.nightly
@pytest.mark.parametrize("name", list(WORK))
def test_readers_a_writer_a_saver_and_a_loader(name, amount, tmp_path, figures):
    crew = Crew(WORK[name], tmp_path / "saved")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        started = time.perf_counter()
        crew.run(amount(0.7, 60))
    finally:
        sys.setswitchinterval(interval)
    assert not crew.faults, crew.faults[0]
    assert all(crew.count[name] > 0 for name in ("reads", "writes", "saves", "loads"))
    crew.obj.check()
    figures(seconds=round(time.perf_counter() - started), **crew.count)


def test_a_vocabulary_is_whole_while_it_grows(amount):
    tokenizer, index = llmds_nb.Tokenizer(), llmds_nb.InvertedIndex()
    stop, faults = threading.Event(), []

    def write():
        for n in itertools.count():
            tokenizer.fit([f"w{n} x{n}"])
            index.add([n % 50], [f"w{n} y{n}"])
            if n % 97 == 0:
                index.compact()
            if stop.is_set():
                return

    def check():
        while not stop.is_set():
            try:
                for made in (tokenizer, index):
                    made.check()
                assert tokenizer.terms[:2] in ([], ["w0", "x0"])
            except BaseException:
                faults.append(traceback.format_exc())
                stop.set()

    threads = [threading.Thread(target=role) for role in (write, check, check)]
    for thread in threads:
        thread.start()
    stop.wait(amount(1, 20))
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults, faults[0]


def test_a_state_in_between_is_found(tmp_path):
    class Torn(llmds_nb.PagedAllocator):
        def share(self, pages):
            for page in pages:
                super().share([page])
                time.sleep(0.001)

    def torn():
        pool = Torn(12, 4)
        pool.alloc(5)
        return pool

    crew = Crew(WORK["PagedAllocator"]._replace(make=torn), tmp_path / "saved")
    crew.run(5)
    assert "an answer of no whole state" in crew.faults[0]
