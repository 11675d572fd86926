"""The judged and the unjudged text collection of the benchmarks; absent data means n/a."""

import gzip
import json
import math
import os
from functools import cache
from pathlib import Path

DATA = Path(os.environ.get("LLMDS_DATA", Path(__file__).parents[1] / "../shared/data"))


def _lines(path):
    if not path.exists():
        raise NotImplementedError(f"no {path}")
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        return [json.loads(line) for line in file]


@cache
def msdocs(step=1):
    """(passages, 1,000 short queries, 1,000 long queries), every `step`-th passage."""
    passages = [line["text"] for line in _lines(DATA / "msdocs/corpus.jsonl.gz")[::step]]
    queries = [line["text"] for line in _lines(DATA / "msdocs/queries.jsonl")]
    return passages, queries[:1000], queries[1000:]


@cache
def vaswani():
    """(ids, texts, queries, per query {id: gain})."""
    docs, queries = _lines(DATA / "vaswani/corpus.jsonl"), _lines(DATA / "vaswani/queries.jsonl")
    gains = {query["_id"]: {} for query in queries}
    with open(DATA / "vaswani/qrels/test.tsv") as file:
        for line in list(file)[1:]:
            query, doc, gain = line.split()
            gains[query][int(doc)] = int(gain)
    return (
        [int(doc["_id"]) for doc in docs],
        [doc["text"] for doc in docs],
        [query["text"] for query in queries],
        [gains[query["_id"]] for query in queries],
    )


def ndcg10(ranked, gains):
    """Mean nDCG@10 with linear gain of ranked ids against {id: gain}, one of each per query."""

    def dcg(values):
        return sum(gain / math.log2(place + 2) for place, gain in enumerate(values))

    scores = [
        dcg([judged.get(int(id_), 0) for id_ in ids[:10]])
        / dcg(sorted(judged.values(), reverse=True)[:10])
        for ids, judged in zip(ranked, gains, strict=True)
    ]
    return sum(scores) / len(scores)
