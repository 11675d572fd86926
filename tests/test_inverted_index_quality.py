"""InvertedIndex on judged queries, and beside bm25s."""

import gzip
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from oracles_inverted_index import words

from llmds_nb import InvertedIndex, Tokenizer

DATA = Path(os.environ.get("LLMDS_DATA", Path(__file__).parents[1] / "../shared/data"))


def beir(name):
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    corpus = folder / "corpus.jsonl"
    opened = open(corpus) if corpus.exists() else gzip.open(f"{corpus}.gz", "rt")  # noqa: SIM115
    with opened as file:
        docs = [json.loads(line) for line in file]
    with open(folder / "queries.jsonl") as file:
        queries = [json.loads(line) for line in file]
    return docs, queries


def test_quality_on_vaswani():
    pytest.importorskip("Stemmer")
    docs, queries = beir("vaswani")
    index = InvertedIndex(tokenizer=Tokenizer(stemmer="english"))
    index.add([int(doc["_id"]) for doc in docs], [doc["text"] for doc in docs])
    relevant = {query["_id"]: {} for query in queries}
    with open(DATA / "vaswani/qrels/test.tsv") as file:
        for line in list(file)[1:]:
            query, doc, gain = line.split()
            relevant[query][int(doc)] = int(gain)
    hits = index.search([query["text"] for query in queries], 100)
    ndcg, recall = [], []
    for query, ids in zip(queries, hits.ids.tolist(), strict=True):
        gains = relevant[query["_id"]]
        ideal = sorted(gains.values(), reverse=True)[:10]
        found = [gains.get(id_, 0) for id_ in ids[:10]]
        ndcg.append(
            sum(g / math.log2(i + 2) for i, g in enumerate(found))
            / sum(g / math.log2(i + 2) for i, g in enumerate(ideal))
        )
        recall.append(sum(id_ in gains for id_ in ids) / len(gains))
    assert np.mean(ndcg) == pytest.approx(0.436, abs=0.003)
    assert np.mean(recall) == pytest.approx(0.603, abs=0.003)


@pytest.mark.peer
def test_scores_agree_with_bm25s():
    bm25s = pytest.importorskip("bm25s")
    docs, queries = beir("vaswani")
    texts, queries = [d["text"] for d in docs[:2000]], [q["text"] for q in queries]
    index = InvertedIndex()
    index.add(None, texts)
    hits = index.search(queries, 10)
    peer = bm25s.BM25(k1=1.2, b=0.75, method="lucene", backend="numpy")
    peer.index([words(text) for text in texts], show_progress=False)
    _, scores = peer.retrieve([words(q) for q in queries], k=10, show_progress=False)
    np.testing.assert_allclose(np.maximum(hits.scores, 0), scores, rtol=2e-5, atol=1e-6)
