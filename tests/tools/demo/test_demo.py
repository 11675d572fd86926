"""The demo end to end on a small real corpus; each of its checks can fail."""

import contextlib
import json
import sys

import numpy as np
import pytest

from llmds_nb import HNSW, KVCache, RetrievalPipeline
from llmds_nb.tools.demo import building, corpus, rag, report, run as demo
from llmds_nb.tools.main import main
from llmds_nb.tools.progress import Progress
from llmds_nb.tools.replay import engine

MODULES = (
    "argparse configparser csv datetime fractions pathlib random statistics subprocess zipfile"
)
FEW = ["--requests", "40", "--pages", "256", "--page-size", "32"]


@pytest.fixture(scope="module", autouse=True)
def small_vectors():
    """Fewer dimensions: on a busy machine BLAS spends seconds on a QR of 272 columns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "LSA_DIM", 64)
        yield


@pytest.fixture(scope="module")
def small_corpus(tmp_path_factory):
    """About 370 docstrings of the standard library as JSONL, two of its lines broken."""
    files = [file for file in corpus._source_files() if file[1] in MODULES.split()]
    documents = [d for d in corpus.docstrings_of_files(files) if len(d.text.split()) > 5]
    seen = {d.source: d for d in documents}.values()
    lines = [json.dumps({"id": d.source, "text": d.text}) for d in seen]
    lines.insert(3, "{broken")
    lines.append('{"id": "no text"}')
    path = tmp_path_factory.mktemp("corpus") / "small.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def run(small_corpus, tmp_path_factory):
    """Exit code, report and file of one run."""
    path = tmp_path_factory.mktemp("demo") / "report.json"
    code = main(["demo", "--corpus", str(small_corpus), "--json", str(path), *FEW])
    return code, json.loads(path.read_text())


def test_demo_passes_its_checks(run):
    code, result = run
    assert [check["name"] for check in result["checks"] if not check["passed"]] == []
    assert code == 0
    assert len(result["checks"]) == 5


def test_figures_are_plausible(run):
    result = run[1]
    conditions, quality, serving, kv = (
        result[section] for section in ("conditions", "quality", "serving", "kv")
    )
    assert conditions["skipped"] == 2
    assert conditions["documents"] > 300
    assert conditions["questions_test"] > 30
    assert 0.95 <= quality["hnsw_recall_at_10"] <= 1
    for method in ("dense", "sparse", "fused"):
        assert 0.2 < quality[method]["mrr_at_10"] <= quality[method]["recall_at_10"] <= 1
        latency = result["wall_clock"]["search_ms"][method]
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
    assert serving["finished"] + serving["rejected"] == serving["requests"] == 40
    assert serving["ttft_ms"]["p50"] <= serving["latency_ms"]["p50"]
    assert serving["ttft_ms"]["n"] == serving["finished"]
    for ratio in ("retrieval_batch_fill", "step_fill", "cache_hit_ratio"):
        assert 0 <= serving[ratio] <= 1
    # All prompts start with the system prompt, of more than ten pages.
    assert 0.2 < kv["prefix_hit_ratio"] < 1
    assert 0 < kv["pages_used_peak"] < kv["pages_needed_peak"]
    assert kv["pages_used_peak"] <= kv["pages"]
    assert 0 < kv["saved_percent_mean"] <= kv["saved_percent_possible"] + 5
    assert result["audit"]["pages_saved"] > 0
    hot, wall = result["hot"], result["wall_clock"]["hot_search_ms"]
    assert 0 < hot["queries"] <= 20 and 0 < hot["pages_pinned"] <= kv["pages"] / 2
    assert wall["primed"]["n"] == wall["unprepared"]["n"] == hot["queries"]
    assert hot["reused_percent"]["unprepared"] < hot["reused_percent"]["primed"] <= 100
    assert hot["ttft_ms"]["primed"]["p50"] <= hot["ttft_ms"]["unprepared"]["p50"]


def test_the_seed_repeats_everything_but_the_wall_clock(small_corpus, tmp_path, monkeypatch):
    # The secret of the pipeline's sketch stands in the file's header: its digits change the size.
    monkeypatch.setattr("llmds_nb.structures.sketch.secret_word", lambda: 2**63 + 1)

    def again(*options):
        path = tmp_path / "again.json"
        main(["demo", "--corpus", str(small_corpus), "--json", str(path), *FEW, *options])
        result = json.loads(path.read_text())
        del result["wall_clock"]
        return result

    first = again()
    assert again() == first
    assert again("--seed", "1") != first


def test_every_figure_is_defined_and_every_definition_has_a_figure(run):
    result = run[1]
    for name in report.DEFINITIONS:
        section, _, figure = name.partition(".")
        if section == "quality" and figure in ("recall_at_10", "mrr_at_10"):
            assert figure in result["quality"]["dense"]
        elif figure:
            assert figure in result[section]
        else:
            assert section in result or section == "percentiles"


def test_table_is_narrow_and_holds_the_figures(run):
    result = run[1]
    text = report.table(result)
    assert max(map(len, text.splitlines())) < 100
    for label in (
        *("documents/s", "recall@10", "p99", "TTFT", "batch fill", "cache hit ratio"),
        *("saved by sharing", "prefix hit ratio", "evictions", "admission rejections"),
    ):
        assert label in text
    assert f"{result['kv']['pages_used_peak']:,}" in text
    assert "FAILED" not in text
    result["checks"][0]["passed"] = False
    assert "FAILED" in report.table(result)
    result["checks"][0]["passed"] = True


def test_the_halves_are_compared(run):
    result = run[1]
    halves, quality = result["halves"], result["quality"]
    found, kept, n = halves["found"], halves["kept_by_fusion"], halves["questions"]
    assert n == result["conditions"]["questions_test"] == sum(found.values())
    assert (found["both"] + found["dense_only"]) / n == quality["dense"]["recall_at_10"]
    assert (found["both"] + found["sparse_only"]) / n == quality["sparse"]["recall_at_10"]
    assert sum(kept.values()) / n == quality["fused"]["recall_at_10"]
    assert all(kept[name] <= found[name] for name in found)
    for name, examples in halves["examples"].items():
        assert len(examples) == min(found[name], 2)
        assert all(1 <= example["rank"] <= 10 for example in examples)
    text = report.table(result)
    assert f"both find {found['both']}, neither {found['neither']}" in text
    assert "only dense finds" in text and "static vectors, HNSW and BM25" in text


def test_without_the_model_the_demo_has_lsa_and_says_so(
    small_corpus, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wordllama", None)
    path = tmp_path / "lsa.json"
    assert main(["demo", "--corpus", str(small_corpus), "--json", str(path), *FEW]) == 0
    captured = capsys.readouterr()
    assert "pip install 'llmds_nb[static]'" in captured.err and "LSA, HNSW and" in captured.out
    result = json.loads(path.read_text())
    assert result["conditions"]["encoder"] == "lsa"
    assert result["quality"]["dense"]["recall_at_10"] > 0.2


def test_plot_is_a_picture(run, tmp_path):
    pytest.importorskip("matplotlib")
    from llmds_nb.tools import plots
    from llmds_nb.tools.errors import BadInput

    plots.draw(run[1], tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(BadInput, match=r"nonsense"):
        plots.draw(run[1], tmp_path / "demo.nonsense")


def test_pages_too_few_for_one_request_are_refused(small_corpus, capsys, monkeypatch):
    monkeypatch.setattr(demo, "_Compilation", None)  # before anything is compiled
    assert main(["demo", "--corpus", str(small_corpus), "--pages", "3"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--pages 3 of 64 tokens cannot hold one request" in line


def failing(small_corpus, capsys):
    """Run the demo with something broken; return the lines that say which checks failed."""
    assert main(["demo", "--corpus", str(small_corpus), *FEW]) == 1
    captured = capsys.readouterr()
    assert "FAILED" in captured.out
    return [line for line in captured.err.splitlines() if "check failed" in line]


def test_a_bad_graph_is_found(small_corpus, capsys, monkeypatch):
    search = HNSW.search

    def worse(self, queries, k=10, **options):
        found = search(self, queries, k, **options)
        return found._replace(ids=np.where(np.arange(k) % 2, found.ids, -1))

    monkeypatch.setattr(HNSW, "search", worse)
    assert any("HNSW recall@10" in line for line in failing(small_corpus, capsys))


def test_a_bad_fusion_is_found(small_corpus, capsys, monkeypatch):
    search = RetrievalPipeline.search

    def worse(self, queries, k=10, **options):
        found = search(self, queries, k, **options)
        return found if found.ids.dtype == object else found._replace(ids=found.ids + 1)

    monkeypatch.setattr(RetrievalPipeline, "search", worse)
    monkeypatch.setattr(RetrievalPipeline, "get", lambda self, ids: ["text"] * np.size(ids))
    lines = failing(small_corpus, capsys)
    assert len(lines) == 1
    assert "fused recall@10" in lines[0]


def test_a_cache_that_does_not_share_is_found(small_corpus, capsys, monkeypatch):
    held = rag.pages_held
    monkeypatch.setattr(rag, "pages_held", lambda prompts, size: held(prompts, size) + 1)
    (line,) = failing(small_corpus, capsys)
    assert "pages saved by sharing equal the formula" in line


def test_a_cache_that_shares_wrongly_is_found(small_corpus, capsys, monkeypatch):
    page_table = KVCache.page_table

    def torn(self, seq_ids, **options):
        table = page_table(self, seq_ids, **options)
        if len(table.indices) > 1:
            table.indices[-1] = table.indices[0]
        return table

    monkeypatch.setattr(KVCache, "page_table", torn)
    assert any("pages saved by sharing" in line for line in failing(small_corpus, capsys))


def test_a_request_that_never_ends_is_found(small_corpus, capsys, monkeypatch):
    submit = engine.EngineStage.submit

    def forgetful(self, request, prompt, records):
        if request != 7:
            submit(self, request, prompt, records)

    monkeypatch.setattr(engine.EngineStage, "submit", forgetful)
    (line,) = failing(small_corpus, capsys)
    assert "request 7 ended 0 times" in line


def test_a_reloaded_index_that_answers_otherwise_is_found(small_corpus, capsys, monkeypatch):
    load = RetrievalPipeline.load

    def altered(path, **options):
        pipeline = load(path, **options)
        pipeline.remove([0, 1, 2, 3, 4, 5, 6, 7])
        return pipeline

    monkeypatch.setattr(RetrievalPipeline, "load", altered)
    (line,) = failing(small_corpus, capsys)
    assert "the reloaded index answers as the built one" in line


def test_bad_corpora_are_refused_before_anything_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_Compilation", None)
    with pytest.raises(demo.BadInput):
        demo.run(demo.Options(corpus=str(tmp_path)), Progress())


@pytest.mark.parametrize("processes", [True, False])
def test_the_first_run_compiles_in_two_processes_if_it_can(monkeypatch, processes):
    said = []
    progress = Progress()
    monkeypatch.setattr(progress, "say", said.append)
    monkeypatch.setattr(demo, "kernel_cache", lambda: ("an empty folder", []))
    if not processes:

        def refuse(*_, **__):
            raise OSError("no semaphores here")

        monkeypatch.setattr(demo, "ProcessPoolExecutor", refuse)
    with contextlib.closing(demo._Compilation(progress)) as compilation:
        assert (compilation._child is not None) == processes
        compilation.wait_for("retrieval")
        compilation.wait_for("serving")
    assert "compiling kernels" in said[0]


def test_a_small_cache_still_ends_every_request_once(small_corpus, tmp_path):
    path = tmp_path / "tight.json"
    options = ["--requests", "30", "--pages", "64", "--page-size", "32", "--json", str(path)]
    assert main(["demo", "--corpus", str(small_corpus), *options]) == 0
    result = json.loads(path.read_text())
    assert result["kv"]["evictions"] > 0
    assert result["kv"]["pages_used_peak"] <= 64


def test_a_model_serves_the_retrieved_passages(small_corpus, tmp_path, capsys):
    pytest.importorskip("transformers")
    path = tmp_path / "report.json"
    given = ["--corpus", str(small_corpus), "--json", str(path), "--model", "random:llama"]
    assert main(["demo", *given, "--requests", "12"]) == 0
    out, result = capsys.readouterr().out, json.loads(path.read_text())
    made = result["generation"]
    assert made["n_requests"] == 12 and made["generated_tokens"] == 12 * 32
    assert len(result["checks"]) == 4 and all(check["passed"] for check in result["checks"])
    # The system prompt is computed for the first request, and found by the others.
    assert made["cached_tokens"] > 11 * 1900
    assert "Generation: random llama, 12 requests" in out and "virtual clock" not in out
    assert max(map(len, out.splitlines())) < 100


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--model", "random:bert"], "must be a folder or random: and one of llama"),
        (["--model", "/no/such"], "/no/such: no such folder"),
        (["--model", "random:llama", "--plot", "/tmp/x.png"], "without --model"),
    ],
)
def test_a_bad_model_is_refused(capsys, given, message):
    pytest.importorskip("transformers")
    assert main(["demo", *given]) == 2
    assert message in capsys.readouterr().err
