"""Shards over real collections: bit for bit one pipeline; with graphs, how often they are not."""

import gzip
import itertools
import json

import numpy as np
import pytest

from llmds_nb import LsaEncoder, RetrievalPipeline

from .collection import Collection, assert_same


def read(folder, n):
    """(texts, vectors, queries, vectors of the queries) of a set, at most n documents."""
    corpus = folder / "corpus.jsonl"
    if corpus.exists():
        lines = corpus.read_text().splitlines()
    else:
        lines = gzip.decompress((folder / "corpus.jsonl.gz").read_bytes()).decode().splitlines()
    texts = [json.loads(line)["text"] for line in lines[:n]]
    lines = (folder / "queries.jsonl").read_text().splitlines()
    queries = [json.loads(line)["text"] for line in lines]
    vectors, asked = (
        np.load(folder / f"minilm_{part}.f16.npy").astype(np.float32)
        for part in ("docs", "queries")
    )
    return texts, vectors[: len(texts)], queries[:60], asked[:60]


def filled(structure, kind, texts, vectors):
    """The structure after adds in three parts, removes, replacements, and adds of removed ones."""
    n = len(texts)
    keys = [kind(i) for i in range(n)]
    metadata = [{"half": i % 2, "tenth": i % 10} for i in range(n)]
    cuts = [0, n // 2, n // 2 + n // 5, n]
    for begin, end in itertools.pairwise(cuts):
        part = slice(begin, end)
        structure.add(keys[part], texts[part], vectors[part], metadata=metadata[part])
    structure.remove(keys[10 : n // 3])
    part = slice(0, n // 6)
    structure.add(keys[part], texts[part][::-1], vectors[part][::-1], metadata=metadata[part])
    return structure


OPTIONS = [
    {}, {"fusion": "minmax"}, {"fusion": "rrf", "weight": 0.4}, {"fusion": "dbsf"},
    {"where": {"half": 1}, "min_score": 0.3}, {"group_by": "tenth", "diversity": 0.4},
]  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "some"), [("vaswani", 2500), ("msdocs", 3000)])
@pytest.mark.parametrize("kind", [int, "key {}".format])
def test_as_one_pipeline(name, some, kind, shared_data, amount, figures):
    texts, vectors, queries, asked = read(shared_data / name, amount(some, 60_000))
    one = filled(RetrievalPipeline(cache_tokens=0), kind, texts, vectors)
    wanted = [one.search(queries, 10, vectors=asked, exact=True, **each) for each in OPTIONS]
    by_graph = one.search(queries, 10, vectors=asked)
    for n_shards in amount((1, 3), (1, 2, 3, 4)):
        parts = filled(Collection(n_shards), kind, texts, vectors)
        for options, hits in zip(OPTIONS, wanted, strict=True):
            assert_same(parts.search(queries, 10, vectors=asked, **options), hits)
        found = parts.search(queries, 10, vectors=asked, exact=False)
        same = [
            ids.tolist() == of_one.tolist() and scores.tobytes() == scores_of_one.tobytes()
            for ids, scores, of_one, scores_of_one in zip(*found, *by_graph, strict=True)
        ]
        common = np.mean(
            [np.isin(a, b).mean() for a, b in zip(found.ids, by_graph.ids, strict=True)]
        )
        figures(**{f"same_{n_shards}": np.mean(same), f"common_{n_shards}": common})


@pytest.mark.nightly
def test_lsa_as_one_pipeline(shared_data, amount):
    texts, _, queries, _ = read(shared_data / "vaswani", amount(1200, 60_000))
    one = RetrievalPipeline(encoder=LsaEncoder(64), cache_tokens=0)
    parts = Collection(3, encoder=LsaEncoder(64))
    n = len(texts)
    for structure in (one, parts):
        structure.add(range(n // 2), texts[: n // 2])
        structure.add(range(n // 2, n), texts[n // 2 :])
        structure.remove(range(0, n, 5))
    for options in OPTIONS[:4]:
        found = parts.search(queries, 10, **options)
        assert_same(found, one.search(queries, 10, exact=True, **options))
