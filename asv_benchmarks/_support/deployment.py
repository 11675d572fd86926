"""Figures of CONTRIBUTING, a large deployment: python -m asv_benchmarks._support.deployment WHAT.

copies   hit ratio of R routers that do not know of one another, each with 1 / R of the requests
memory   bytes and time of a PrefixRouter of up to 4,096 replicas
shards   bytes a document, statistics of a query and of a write, of one pipeline of msdocs
"""

import gzip
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

DATA = Path(os.environ.get("LLMDS_DATA", Path(__file__).parents[3] / "shared" / "data"))


def trace_of():
    from llmds_nb.tools.replay import traces

    return traces.read(DATA / "traces" / "mooncake_conversation_trace.jsonl.gz")


def copies(replicas=64, pages=625):
    """(routers, hit ratio, imbalance) of a replay, cache only."""
    from llmds_nb import PrefixRouter
    from llmds_nb.tools.replay import replay
    from llmds_nb.tools.replay.arguments import Options

    trace = trace_of()
    options = Options(cache_only=True, replicas=replicas, pages=pages * replicas)
    for n in (1, 2, 4, 16):
        routers = [PrefixRouter(replicas) for _ in range(n)]
        turns = np.random.default_rng(0).integers(n, size=len(trace)).tolist()[::-1]

        def route(tokens, routers=routers, turns=turns):
            return routers[turns.pop()].route(tokens)

        cache = replay.run(trace, options, router=lambda *_, route=route: route)["cache"]
        yield n, round(cache["hit_ratio"], 4), round(cache["imbalance"], 3)


def memory():
    """(replicas, prefixes, bytes, us for a prompt of 8,192 tokens in pages of 16)."""
    from llmds_nb import PrefixRouter

    rng = np.random.default_rng(0)
    prompts = rng.integers(0, 2**31, (2_000, 8192), np.int32)
    for replicas, prefixes in ((64, 2**18), (1024, 2**22), (4096, 2**24)):
        router = PrefixRouter(replicas, page_size=16, max_prefixes=prefixes)
        router.route(prompts[0])
        begun = time.process_time()
        for prompt in prompts:
            router.route(prompt)
        taken = time.process_time() - begun
        yield replicas, prefixes, router.nbytes, round(taken / len(prompts) * 1e6, 1)


def shards(n_docs=20_000):
    """Measures of one shard: name and value."""
    import pickle

    from llmds_nb import RetrievalPipeline

    with gzip.open(DATA / "msdocs" / "corpus.jsonl.gz", "rt") as file:
        texts = [json.loads(line)["text"] for line, _ in zip(file, range(n_docs), strict=False)]
    lines = (DATA / "msdocs" / "queries.jsonl").read_text().splitlines()
    queries = [json.loads(line)["text"] for line in lines]
    vectors = np.load(DATA / "msdocs" / "minilm_docs.f16.npy")[:n_docs].astype(np.float32)
    pipeline = RetrievalPipeline(dim=384)
    pipeline.add(np.arange(n_docs), texts, vectors)
    yield "documents", n_docs
    yield "bytes a document, in memory", round(pipeline.nbytes / n_docs)
    yield "of it text", round(sum(len(text.encode()) for text in texts) / n_docs)
    view = pipeline.view()
    found = [view.statistics([query]) for query in queries]
    sizes = [len(pickle.dumps(each, 5)) for each in found]
    yield "terms a query", round(float(np.mean([len(each.doc_freq) for each in found])), 1)
    yield "bytes of statistics a query and shard", round(float(np.mean(sizes)))
    together = view.statistics(queries[:256])
    yield "the same in batches of 256", round(len(pickle.dumps(together, 5)) / 256)
    best = view.candidates(queries[:1], 10, vectors=vectors[:1])
    yield "bytes of candidates a query and shard", len(pickle.dumps(best, 5))


if __name__ == "__main__":
    for row in {"copies": copies, "memory": memory, "shards": shards}[sys.argv[1]]():
        print(*row, sep="\t", flush=True)  # noqa: T201
