"""The text collections of the benchmarks; without the data they raise NotImplementedError (n/a)."""

import gzip
import json
import math
import os
from functools import cache
from pathlib import Path

import numpy as np

# The words that all of history splits alike: `pattern`, English stop words, no stemmer.
PATTERN = r"\b\w\w+\b"
PLAIN_WORDS = {"pattern": PATTERN, "stopwords": "english", "stemmer": None}
STEMMED_WORDS = {**PLAIN_WORDS, "stemmer": "english"}
DATA = Path(os.environ.get("LLMDS_DATA", Path(__file__).parents[2] / "../shared/data"))


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
def msdocs_set(size):
    """Texts and queries at a size: "5k" is msdocs(step=10); "100k" has each passage split in two;
    "1M" has ten copies of those, each copy without a random fifth of its words.
    """
    if size == "5k":
        return msdocs(step=10)
    passages, short, long = msdocs()
    words = [text.split(" ") for text in passages]
    halves = [part for w in words for part in (w[: len(w) // 2], w[len(w) // 2 :])]
    if size == "100k":
        return [" ".join(half) for half in halves], short, long
    texts = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        for half in halves:
            keep = rng.random(len(half)) >= 0.2
            texts.append(" ".join([word for word, kept in zip(half, keep, strict=True) if kept]))
    return texts, short, long


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
