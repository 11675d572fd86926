"""The command `evaluate`: reading of judged sets, its measures, runs, and what it refuses."""

import gzip
import json
import math
import sys

import numpy as np
import pytest

from llmds_nb import HNSW
from llmds_nb.tools.evaluate import beir, measures, run
from llmds_nb.tools.main import main
from llmds_nb.tools.progress import Progress

pytest.importorskip("ir_measures")

TOPICS = ("salt water boils", "stars shine at night", "cars burn fuel", "trees lose leaves")
WORDS = ("river", "hill", "window", "paper", "music", "stone", "garden", "bridge", "ice", "letter")


def jsonl(path, rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")


def documents():
    """Six documents a topic, among words of no meaning."""
    rng = np.random.default_rng(0)
    return [
        {"_id": f"d{i}", "title": WORDS[i % 10], "text": f"{TOPICS[i % 4]} {' '.join(more)}"}
        for i, more in enumerate(rng.choice(WORDS, (24, 3)))
    ]


def judgements(queries):
    lines = ["query-id\tcorpus-id\tscore"]
    lines += [f"q{q}\td{d}\t{2 if d < 4 else 1}" for q in queries for d in range(q % 4, 24, 4)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def folder(tmp_path):
    """A set of 24 documents and 8 queries, two a topic, of which 7 are judged."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    jsonl(folder / "corpus.jsonl", documents())
    words = [word for topic in zip(*(t.split() for t in TOPICS), strict=False) for word in topic]
    rows = [{"_id": f"q{i}", "text": f"{word} {WORDS[i]}"} for i, word in enumerate(words[:8])]
    jsonl(folder / "queries.jsonl", rows)
    (folder / "qrels" / "test.tsv").write_text(judgements(range(7)))
    return folder


def evaluated(folder, *arguments, tmp_path):
    out = tmp_path / "figures.json"
    assert main(["evaluate", str(folder), "--json", str(out), *map(str, arguments)]) == 0
    return json.loads(out.read_text())


def refused(capsys, *arguments):
    assert main(["evaluate", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    return captured.err.splitlines()[-1]


def test_figures_table_and_json(folder, tmp_path, capsys):
    figures = evaluated(folder, tmp_path=tmp_path)
    assert figures["set"] == {
        "folder": str(folder), "split": "test", "documents": 24, "queries": 7, "unjudged": 1,
        "judgements": 42, "notes": [],
    }  # fmt: skip
    assert list(figures["rankings"]) == sorted(run.RANKINGS)
    for one in figures["rankings"].values():
        assert {*measures.MEASURES, "latency_ms"} == one.keys()
        assert 0 < one["nDCG@10"] <= 1 and one["latency_ms"]["n"] == 7
    assert figures["rankings"]["sparse"]["recall@100"] == 1
    assert "runs" not in figures
    table = capsys.readouterr().out
    for name in run.RANKINGS:
        (line,) = [line.split() for line in table.splitlines() if line.startswith(f"  {name} ")]
        assert line[1] == f"{figures['rankings'][name]['nDCG@10']:.4f}"
    assert "queries                                7  of 8" in table
    assert max(map(len, table.splitlines())) < 100


def test_measures_are_those_of_the_definitions(folder, tmp_path):
    """By a slow calculation from the saved run."""
    figures = evaluated(folder, "--save-run", tmp_path / "runs", tmp_path=tmp_path)
    gains = beir.read(folder, Progress()).gains
    for name in run.RANKINGS:
        ranked = {query: [] for query in gains}
        last = {}
        for line in (tmp_path / "runs" / f"{name}.run").read_text().splitlines():
            query, zero, document, rank, score, tag = line.split()
            assert (zero, tag) == ("Q0", f"llmds-nb-{name}")
            assert int(rank) == len(ranked[query]) + 1
            assert np.float32(score) < last.get(query, np.inf)  # whoever sorts keeps the order
            last[query] = np.float32(score)
            ranked[query].append(document)
        found = [measured_by_hand(ranked[query], gains[query]) for query in gains]
        for i, measure in enumerate(measures.MEASURES):
            expected = np.mean([one[i] for one in found])
            assert figures["rankings"][name][measure] == pytest.approx(expected), (name, measure)


def measured_by_hand(ranked, gains):
    values = [gains.get(document, 0) for document in ranked]
    ideal = sorted(gains.values(), reverse=True)[:10]
    ndcg = sum(v / math.log2(i + 2) for i, v in enumerate(values[:10]))
    ndcg /= sum(v / math.log2(i + 2) for i, v in enumerate(ideal))
    hits = np.cumsum([v > 0 for v in values])
    precision = sum(hits[i] / (i + 1) for i, v in enumerate(values) if v > 0) / len(gains)
    first = next((i + 1 for i, v in enumerate(values[:10]) if v > 0), math.inf)
    return ndcg, precision, 1 / first, sum(v > 0 for v in values[:100]) / len(gains)


def test_equal_scores_fall_by_the_smallest_step():
    scores = measures.descending([3.0, 3.0, 3.0, 1.0, -1.0, -1.0])
    assert scores == sorted(set(scores), reverse=True)
    assert scores == np.float32(scores).tolist()
    assert scores[::3] == [3.0, 1.0] and scores[2] == pytest.approx(3.0)


def test_the_weight_is_tuned_on_a_split_of_its_own(folder, tmp_path):
    """The split says that the other documents are relevant: what it chose is used all the same."""
    figures = evaluated(folder, tmp_path=tmp_path)
    assert figures["conditions"]["tuning_split"] is None
    for split, name in ((["--tune-split", "train"], "train"), ([], "dev")):
        for file in ("train", "dev"):
            (folder / "qrels" / f"{file}.tsv").write_text(judgements(range(8)))
        rows = (folder / "queries.jsonl").read_text().splitlines()
        rows += [json.dumps({"_id": f"q{i + 8}", "text": f"{TOPICS[i]} leaf"}) for i in range(4)]
        jsonl(folder / "queries.jsonl", rows[:12])
        (folder / "qrels" / f"{name}.tsv").write_text(judgements(range(12)))
        figures = evaluated(folder, *split, tmp_path=tmp_path)
        assert figures["conditions"]["tuning_split"] == name
        assert len(figures["conditions"]["tuned_weights"]) == 1


def test_a_query_that_is_reported_is_not_tuned_on(folder):
    rows = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    rows += [{"_id": "q8", "text": rows[0]["text"]}, {"_id": "q9", "text": "something else"}]
    jsonl(folder / "queries.jsonl", rows)
    (folder / "qrels" / "train.tsv").write_text(judgements(range(10)))
    given = beir.read(folder, Progress())
    assert set(given.tuning) == {"q7", "q9"}  # q8 has the text of q0


@pytest.mark.parametrize("half", [0, 1])
def test_each_half_has_the_weight_of_the_other(folder, monkeypatch, half):
    seen = []

    def tune(self, pipeline, names, gains):
        seen.append(list(names))
        return 0.25 if names[0] == "q0" else 0.75

    monkeypatch.setattr(run._Bench, "tune", tune)
    given = beir.read(folder, Progress())
    pipeline = run._pipeline(run.Options(folder))
    weights = run._Bench(pipeline, given, None).weights()
    assert seen == [["q0", "q2", "q4", "q6"], ["q1", "q3", "q5"]]
    assert {weights[i] for i in range(half, 7, 2)} == {0.75 if half == 0 else 0.25}


def test_one_judged_query_is_not_tuned_for(folder, tmp_path, capsys):
    (folder / "qrels" / "test.tsv").write_text(judgements([0]))
    figures = evaluated(folder, tmp_path=tmp_path)
    assert list(figures["rankings"]) == ["dense", "fused", "sparse"]
    assert "tuned: needs more judged queries" in capsys.readouterr().out


def test_by_words_alone(folder, tmp_path):
    figures = evaluated(folder, "--encoder", "none", tmp_path=tmp_path)
    assert list(figures["rankings"]) == ["sparse"]


def test_static_vectors(folder, tmp_path, monkeypatch):
    """The dense half alone keeps as many candidates as in a hybrid search."""
    pytest.importorskip("wordllama")
    search, kept = HNSW.search, set()

    def watched(*arguments, ef, **options):
        kept.add(ef)
        return search(*arguments, ef=ef, **options)

    monkeypatch.setattr(HNSW, "search", watched)
    monkeypatch.setattr(run, "warmup", lambda names: None)  # which searches, too
    figures = evaluated(folder, "--encoder", "static", tmp_path=tmp_path)
    assert list(figures["rankings"]) == sorted(run.RANKINGS)
    assert figures["conditions"]["encoder"] == "static"
    assert kept == {3 * run.DEPTH}


def test_vectors_of_the_users_own(folder, tmp_path, capsys):
    topics = np.eye(4, dtype=np.float16)
    np.save(tmp_path / "d.npy", topics[np.arange(24) % 4])
    np.save(tmp_path / "q.npy", topics[np.arange(8) % 4])
    given = "--vectors", tmp_path / "d.npy", tmp_path / "q.npy"
    figures = evaluated(folder, *given, tmp_path=tmp_path)
    assert figures["rankings"]["dense"]["MAP"] == 1
    # Rows are those of the file: a line that is left out takes its row with it.
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    jsonl(folder / "corpus.jsonl", ["{", *lines[1:]])
    figures = evaluated(folder, *given, tmp_path=tmp_path)
    assert figures["rankings"]["dense"]["recall@100"] == pytest.approx(1 - 2 / 6 / 7)

    capsys.readouterr()
    np.save(tmp_path / "d.npy", topics)
    assert "needs a row for each of 24 lines, not shape [4, 4]" in refused(capsys, folder, *given)
    (tmp_path / "d.npy").write_text("text")
    assert f"{tmp_path / 'd.npy'}: " in refused(capsys, folder, *given)
    np.save(tmp_path / "d.npy", np.full((24, 4), np.nan, np.float32))
    assert "NaN" in refused(capsys, folder, *given)
    np.save(tmp_path / "d.npy", np.ones((24, 3), np.float32))
    assert "dimension 4, not 3" in refused(capsys, folder, *given)
    assert "No such file" in refused(capsys, folder, "--vectors", "/no/d.npy", "/no/q.npy")


def test_gzipped_files_and_trec_columns(folder, tmp_path):
    plain = beir.read(folder, Progress())
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        path = folder / name
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert beir.read(folder, Progress()) == plain
    trec = [
        f"{query} 0 {document} {gain}\r\n"
        for query, of_query in plain.gains.items()
        for document, gain in of_query.items()
    ]
    (folder / "qrels" / "test.tsv").write_text("".join(trec), newline="")
    assert beir.read(folder, Progress()) == plain


def test_what_is_left_out_is_named(folder, tmp_path, capsys):
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    bad = ["{", "[]", '{"_id": "d0", "text": "again"}', '{"_id": "", "text": "x"}', '{"_id": "x"}']
    jsonl(folder / "corpus.jsonl", ["", *lines, *bad])
    with open(folder / "qrels" / "test.tsv", "a") as file:
        file.write("q0\td0\t1\nq0\td1\nq0\td1\tmany\nq1\tno-such\t1\nno-query\td1\t1\nq7\td3\t0\n")
    figures = evaluated(folder, tmp_path=tmp_path)
    corpus, qrels = folder / "corpus.jsonl", folder / "qrels" / "test.tsv"
    notes = [
        f"{corpus}:26: not JSON: ",
        f"{corpus}:27: expected an object with _id and text, not list",
        f"{corpus}:28: _id 'd0' already stands at {corpus}:2",
        f"{corpus}:29: _id must be a string or an integer",
        f"{corpus}:30: text must be a string",
        f"{qrels}:44: 'q0' and 'd0' already have 2",
        f"{qrels}:45: expected query-id, corpus-id and score, not 2 columns",
        f"{qrels}:46: the score must be an integer, not 'many'",
        f"{qrels}: 1 judged queries are not in queries.jsonl, such as 'no-query'",
        f"{qrels}: 1 relevant documents are not in the corpus, such as 'no-such'",
    ]
    assert len(figures["set"]["notes"]) == len(notes)
    for found, expected in zip(figures["set"]["notes"], notes, strict=True):
        assert found.startswith(expected)
    assert figures["set"]["queries"] == 7  # q7 has no relevant document
    assert figures["rankings"]["sparse"]["recall@100"] == pytest.approx(1 - 1 / 7 / 7)
    err = capsys.readouterr().err
    assert err.count("note: ") == 5
    assert "10 files or lines left out (--strict refuses them)" in err
    assert f"{corpus}:26: not JSON" in refused(capsys, folder, "--strict")


def test_texts_that_are_hard(folder, tmp_path):
    """Empty documents and queries, ids that are numbers, characters that no file can hold."""
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    rows += [{"_id": 7, "text": ""}, {"_id": 8, "title": None, "text": "lone \ud800 salt"}]
    jsonl(folder / "corpus.jsonl", rows)
    with open(folder / "queries.jsonl", "a") as file:
        file.write('{"_id": 9, "text": ""}\n{"_id": 10, "text": "?!"}\n')
    with open(folder / "qrels" / "test.tsv", "a") as file:
        file.write("9\t7\t1\n10\t8\t1.0\n")
    figures = evaluated(folder, tmp_path=tmp_path)
    assert figures["set"]["queries"] == 9 and figures["set"]["documents"] == 26
    assert figures["rankings"]["sparse"]["recall@100"] == pytest.approx(7 / 9)


def test_refusals(folder, tmp_path, capsys, monkeypatch):
    assert "no such folder" in refused(capsys, tmp_path / "none")
    assert "is empty" in refused(capsys, "")
    assert f"--split best: {folder / 'qrels'} has test" in refused(capsys, folder, "--split=best")
    assert "is what is reported" in refused(capsys, folder, "--tune-split=test")
    assert "--tune-split x: " in refused(capsys, folder, "--tune-split", "x")
    assert "'klingon'" in refused(capsys, folder, "--language", "klingon")
    assert "no-such-encoder" in refused(capsys, folder, "--encoder", "no-such-encoder")
    missing = refused(capsys, folder, "--encoder", "sentence-transformers/none")
    assert "sentence-transformers" in missing
    (tmp_path / "file").touch()
    assert "is a file" in refused(capsys, folder, "--save-run", tmp_path / "file")
    assert "there is no folder" in refused(capsys, folder, "--save-run", tmp_path / "a" / "b")

    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t0\n")
    assert "no query of queries.jsonl has a relevant document" in refused(capsys, folder)
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "a.tsv")
    (folder / "qrels" / "b.tsv").write_text(judgements([0]))
    assert "--split is needed" in refused(capsys, folder)
    (folder / "qrels" / "a.tsv").unlink()
    (folder / "qrels" / "b.tsv").rename(folder / "qrels" / "c.txt")
    assert "no .tsv file of judgements" in refused(capsys, folder)

    (folder / "qrels" / "test.tsv.gz").write_bytes(gzip.compress(b"x" * 999)[:-12])
    assert "damaged gzip file" in refused(capsys, folder)
    (folder / "qrels" / "test.tsv.gz").write_bytes(b"text")
    assert "Not a gzipped file" in refused(capsys, folder)
    (folder / "corpus.jsonl").write_text("{\n")
    assert "no text in it" in refused(capsys, folder)
    (folder / "corpus.jsonl").unlink()
    assert "corpus.jsonl: no such file (nor corpus.jsonl.gz)" in refused(capsys, folder)
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    assert "pip install 'llmds_nb[eval]'" in refused(capsys, folder)


def test_names_that_a_run_cannot_hold(folder, tmp_path, capsys):
    jsonl(folder / "corpus.jsonl", [*documents(), {"_id": "two words", "text": "text"}])
    assert "'two words'" in refused(capsys, folder, "--save-run", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_quality_of_vaswani(shared_data, tmp_path):
    """The figures of other ways to measure: .361 by plain words, .436 stemmed, .434 by MiniLM."""
    folder = shared_data / "vaswani"
    figures = evaluated(folder, "--no-stemming", "--encoder=none", tmp_path=tmp_path)
    assert figures["rankings"]["sparse"]["nDCG@10"] == pytest.approx(0.361, abs=0.003)
    vectors = [folder / f"minilm_{kind}.f16.npy" for kind in ("docs", "queries")]
    rankings = evaluated(folder, "--vectors", *vectors, tmp_path=tmp_path)["rankings"]
    assert rankings["sparse"]["nDCG@10"] == pytest.approx(0.436, abs=0.003)
    assert rankings["sparse"]["recall@100"] == pytest.approx(0.603, abs=0.003)
    assert rankings["dense"]["nDCG@10"] == pytest.approx(0.434, abs=0.005)
    assert rankings["fused"]["nDCG@10"] == pytest.approx(0.5, abs=0.01)
    assert rankings["tuned"]["nDCG@10"] > rankings["sparse"]["nDCG@10"] + 0.03
