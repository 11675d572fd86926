"""The first use of every public structure, each in a new process: what it compiles, and its cost.

`python -P tests/first_use.py [NAME...]` prints a line for each name, and ends with exit code 1 if
anything was compiled. With a wheel that brings its kernels along, and with a warm cache, nothing
is. CI runs it against an installed wheel: nothing here imports the checkout.
"""

import contextlib
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TEXTS = [f"page {i} of a text about caches, queues and graphs" for i in range(500)]
TOKENS = np.arange(300, dtype=np.int32)


def vectors(n, dim):
    return np.random.default_rng(0).standard_normal((n, dim), np.float32)


def admission_controller(ours):
    control = ours.AdmissionController(100.0, 1e4)
    assert control.admit(10).admitted
    control.admit_many([5, 6])
    return control


def continuous_batcher(ours):
    batcher = ours.ContinuousBatcher(cache := ours.KVCache(64, 16))
    for length in (20, 100, 7):
        batcher.submit(TOKENS[:length], max_new_tokens=8)
    while len(batcher):
        plan = batcher.step()
        batcher.advance(plan.seq_ids, np.ones(plan.seq_ids.size, np.int32))
    cache.check()
    batcher.check()
    return batcher


def count_min_sketch(ours):
    sketch = ours.CountMinSketch(1024, 4, top=10)
    sketch.add(TOKENS)
    sketch.add(["one", "two", "one"])
    assert sketch.estimate("one") >= 2
    sketch.top(3)
    sketch.check()
    return sketch


def hnsw(ours):
    rows = vectors(500, 64)
    for options in ({}, {"quantize": None}, {"metric": "cosine"}, {"metric": "ip"}):
        index = ours.HNSW(64, **options)
        ids = index.add(rows)
        index.search(rows[0], 10)
        index.search(rows[:50], 10, filter=ids[:100])
        index.search(rows[:5], 10, exact=True)
        index.add(rows[:10], ids[:10])
        index.remove(ids[10:20])
        index.search(rows[0], 10)
        index.check()
    return index


def indexed_heap(ours):
    heap = ours.IndexedHeap(16)
    heap.push(1, 2.0)
    heap.push_many([2, 3], [1.0, 3.0])
    heap.update(3, 0.5)
    heap.pop()
    heap.pop_many(2)
    heap.check()
    return heap


def inverted_index(ours):
    index = ours.InvertedIndex()
    index.add(range(500), TEXTS)
    index.search("queues page", 10)
    index.search(["caches", "page 7"], 10, filter=list(range(100)))
    index.add([7], ["another text"])
    index.remove([8])
    assert index.search("another", 1).ids[0] == 7
    index.check()
    return index


def kv_cache(ours):
    cache = ours.KVCache(64, 16)
    cache.attach(0, TOKENS)
    cache.commit(0, 300)
    assert cache.attach(1, TOKENS) > 0
    cache.append_many([0, 1], [7, 8])
    cache.fork(0, 2)
    cache.page_table([0, 1])
    cache.block_table([0, 1])
    cache.detach([0, 1, 2])
    cache.attach(3, TOKENS[::-1].copy())
    cache.check()
    return cache


def lsa_encoder(ours):
    encoder = ours.LsaEncoder(dim=8).fit(TEXTS)
    encoder.encode(["queues and graphs"])
    return encoder


def static_encoder(ours):
    try:
        encoder = ours.StaticEncoder().fit(TEXTS)
    except ImportError:  # the wheel of the model is not installed
        ours.StaticEncoder._warmup()
        return None
    encoder.encode(["queues and graphs"])
    return encoder


def paged_allocator(ours):
    pool = ours.PagedAllocator(64)
    pages = pool.alloc(10)
    pool.share(pages[:2])
    pool.free(pages)
    pool.check()
    return pool


def prefix_router(ours):
    router = ours.PrefixRouter(3, page_size=16, max_prefixes=64)
    for length in (50, 100, 300):
        router.route(TOKENS[:length])
    cache = ours.KVCache(64, page_size=8, max_events=99)
    cache.attach(0, TOKENS[:100])
    cache.commit(0, 100)
    router.observe(1, cache.events())
    router.route(TOKENS[:50])
    router.remove(router.add())
    router.remove(1)
    router.check()
    return router


def retrieval_pipeline(ours):
    pipeline = ours.RetrievalPipeline(encoder=ours.LsaEncoder(dim=8))
    pipeline.add(range(500), TEXTS)
    for _ in range(3):
        pipeline.search("queues and graphs", k=3)
    pipeline.search(["page 7", "caches"], k=3, filter=[7, 8])
    pipeline.check()
    return pipeline


def scheduler(ours):
    for policy in ("fcfs", "shortest", "slo", "aging", "fair"):
        made = ours.Scheduler(max_batch_size=2, policy=policy)
        made.submit_many([120, 80, 200])
        made.submit(10)
        made.get_batch()
        made.next_due_ms()
        made.check()
    return made


def token_lru(ours):
    cache = ours.TokenLRU(100)
    cache.put("one", "a value", 60)
    cache.put("two", "another", 60)
    assert cache.get("one") is None and cache.get("two") == "another"
    cache.check()
    return cache


def tokenizer(ours):
    made = ours.Tokenizer().fit(TEXTS)
    made.encode(TEXTS[:10])
    made.encode(["caf\u00e9 unknown"])
    return made


def save_and_load(ours, made):
    """Load it from a file, and mapped where it can be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "saved")
        made.save(path)
        ours.load(path)
        if type(made).__name__ in ("HNSW", "InvertedIndex", "RetrievalPipeline"):
            ours.load(path, mmap=True)


def index_command(ours):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "text.txt").write_text("\n\n".join(TEXTS))
        run("index", f"{folder}/text.txt", "--out", f"{folder}/index")
        run("search", f"{folder}/index", "queues")


def replay_command(ours):
    with tempfile.TemporaryDirectory() as folder:
        trace = f"{folder}/trace.jsonl"
        run("workload", "--out", trace, "--requests", "50")
        run("replay", trace, "--pages", "2000")


def run(*arguments):
    from llmds_nb.tools.main import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(list(arguments)) == 0


USES = {
    "AdmissionController": admission_controller,
    "ContinuousBatcher": continuous_batcher,
    "CountMinSketch": count_min_sketch,
    "HNSW": hnsw,
    "IndexedHeap": indexed_heap,
    "InvertedIndex": inverted_index,
    "KVCache": kv_cache,
    "LsaEncoder": lsa_encoder,
    "PagedAllocator": paged_allocator,
    "PrefixRouter": prefix_router,
    "RetrievalPipeline": retrieval_pipeline,
    "Scheduler": scheduler,
    "StaticEncoder": static_encoder,
    "TokenLRU": token_lru,
    "Tokenizer": tokenizer,
    "index": index_command,
    "replay": replay_command,
}


def use(name):
    """Use it in this process; print how many functions compiled, and the CPU seconds."""
    start = time.process_time()
    import llmds_nb

    made = USES[name](llmds_nb)
    if made is not None:  # but for a command
        save_and_load(llmds_nb, made)
    seconds = time.process_time() - start
    from llmds_nb._core.kernel_cache import compiled_functions

    print(compiled_functions(), seconds, llmds_nb.__file__)


def main(names):
    import llmds_nb
    from llmds_nb._core.warmup import structure_names

    assert set(structure_names()) <= USES.keys(), "a structure has no first use here"
    print(llmds_nb.__file__)
    total = 0
    for name in names or USES:
        command = [sys.executable, "-P", __file__, "--use", name]
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        compiled, seconds, path = out.split()
        assert path == llmds_nb.__file__
        print(f"{name:<20} compiled {int(compiled):>3}, {float(seconds):6.2f} CPU s", flush=True)
        total += int(compiled)
    return int(total > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--use"]:
        use(sys.argv[2])
    else:
        sys.exit(main(sys.argv[1:]))
