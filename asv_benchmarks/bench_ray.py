"""A ShardedPipeline over Ray's actors beside one RetrievalPipeline in this process."""

import statistics
import time

import numpy as np

from . import ours, peer

N, DIM, N_QUERIES, SHARDS = 100_000, 64, 256, 4
ROUNDS = 15
SLACK_S = 0.010  # of messages, beside 1.5 times the time of one pipeline


def _corpus(n=N, seed=0):
    """Texts of Zipf words around topics, and vectors around the same topics."""
    rng = np.random.default_rng(seed)
    topics = rng.standard_normal((200, DIM))
    of_text = rng.integers(0, 200, n)
    words = np.minimum(rng.zipf(1.3, (n, 40)), 50_000) + (of_text[:, None] * 7) % 1000
    texts = [" ".join(f"w{word}" for word in row) for row in words.tolist()]
    vectors = topics[of_text] + 0.7 * rng.standard_normal((n, DIM))
    asked = rng.permutation(n)[:N_QUERIES]
    queries = [" ".join(texts[i].split()[:5]) for i in asked]
    near = vectors[asked] + 0.3 * rng.standard_normal((N_QUERIES, DIM))
    return texts, vectors.astype(np.float32), queries, near.astype(np.float32)


class Batch:
    """Seconds of a batch of 256 queries over 100,000 documents in 4 shards, and of one pipeline."""

    timeout = 900
    number, repeat, rounds = 1, 1, 1

    def setup_cache(self):
        """The medians of both, asked in turns, since a machine's speed changes meanwhile."""
        peer("ray")
        import ray

        from llmds_nb.integrations.ray import ShardedPipeline

        RetrievalPipeline = ours("RetrievalPipeline")
        texts, vectors, queries, near = _corpus()
        ray.init(
            num_cpus=2, include_dashboard=False, namespace="bench", log_to_driver=False,
            configure_logging=False,
        )  # fmt: skip
        try:
            one = RetrievalPipeline(dim=DIM, cache_tokens=0)
            sharded = ShardedPipeline(SHARDS, num_cpus=0, dim=DIM)
            for pipeline in (one, sharded):
                pipeline.add(range(len(texts)), texts, vectors)
            took = {"one": [], "sharded": []}
            same = 0.0
            for _ in range(ROUNDS):
                found = {}
                for name, pipeline in (("one", one), ("sharded", sharded)):
                    start = time.perf_counter()
                    found[name] = pipeline.search(queries, 10, vectors=near)
                    took[name].append(time.perf_counter() - start)
                same = float((found["one"].ids == found["sharded"].ids).mean())
        finally:
            ray.shutdown()
        return {name: statistics.median(values) for name, values in took.items()} | {"same": same}

    def track_one(self, measured):
        """Seconds of one pipeline in this process."""
        return measured["one"]

    def track_sharded(self, measured):
        """Seconds of four shards."""
        return measured["sharded"]

    def track_of_the_limit(self, measured):
        """Seconds of four shards, as a part of 1.5 times those of one pipeline plus 10 ms."""
        return measured["sharded"] / (1.5 * measured["one"] + SLACK_S)

    def track_same_hits(self, measured):
        """Part of the hits that both have at the same place, by their graphs."""
        return measured["same"]

    track_one.unit = track_sharded.unit = "seconds"
    track_of_the_limit.unit = track_same_hits.unit = "1"
