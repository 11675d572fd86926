"""The command line: exit codes, one clear line for bad input, what the commands print."""

import json
import math
import os
import sys

import numpy as np
import pytest

from llmds_nb import __version__
from llmds_nb.tools import search
from llmds_nb.tools.main import _write_json, main


def bad(capsys, *arguments):
    """Run a command that must be refused; return its one line."""
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines[-1].startswith("llmds-nb: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["serve"], "serve needs a FILE or --model DIR"),
        (["serve", "/no/such/file"], "/no/such/file: No such file or directory"),
        (["serve", "/"], "/: Is a directory"),
        (["serve", "x", "--port", "65536"], "--port: must be at most 65535, not 65536"),
        (["serve", "x", "--encoder", "lsa"], "--language and --encoder are for --new"),
        (["serve", "x", "--qps", "0"], "--qps: must be in [0.001, 1e+12], not 0"),
        (["serve", "x", "--host", "0.0.0.0"], "is reached from other machines: set LLMDS_API_KEY"),
        (["serve", "x", "--host", "no.such.host.invalid"], "--host no.such.host.invalid: "),
        (["serve", "/no/such/x", "--new"], "there is no folder /no/such"),
        (["replay", "/no/such/trace"], "/no/such/trace: No such file or directory"),
        (["replay", "/"], "/: Is a directory"),
        (["replay", "t", "--eviction", "mru"], "'mru' (choose from"),
        (["replay", "t", "--eviction", "mru"], "path-lrfu"),
        (["replay", "t", "--policy", "best"], "'best' (choose from"),
        (["replay", "t", "--router", "random"], "'random' (choose from"),
        (["replay", "t", "--pages", "0"], "--pages: must be at least 1, not 0"),
        (["replay", "t", "--pages", "999999999"], "--pages: must be at most 134217728"),
        (["replay", "t", "--speed", "0"], "--speed: must be in [1e-06, 1e+06], not 0"),
        (["replay", "t", "--speed", "nan"], "--speed: must be a finite number, not nan"),
        (["replay", "t", "--step-ms", "-1"], "--step-ms: must be in [0, 1e+06], not -1"),
        (["replay", "t", "--qps", "few"], "--qps: must be a number, not 'few'"),
        (["replay", "t", "--kv-ms", "2"], "--kv-ms: must be in [0, 1], not 2"),
        (["replay", "t", "--limit", "0"], "--limit: must be at least 1, not 0"),
        (["replay", "t", "--jobs", "0"], "--jobs: must be at least 1, not 0"),
        (["replay", "t", "--sweep", "pages"], "--sweep pages: must be OPTION=VALUE,VALUE"),
        (["replay", "t", "--sweep", "size=1"], "with OPTION of pages, page-size, eviction"),
        (["replay", "t", "--sweep", "pages=1,x"], "--sweep pages: must be an integer, not 'x'"),
        (["replay", "t", "--sweep", "pages=1", "pages=2"], "--sweep: pages stands twice"),
        (["replay", "t", "--sweep", "eviction=lru,mru"], "'mru' is none of lru, fifo, lfu"),
        (["workload"], "required: --out"),
        (["workload", "--out", "/no/such/folder/x"], "there is no folder /no/such/folder"),
        (["workload", "--out", "/tmp/x", "--rate", "0"], "--rate: must be in [0.01, 1e+06], not 0"),
        (["workload", "--out", "/tmp/x", "--turns", "7"], "--turns: must be in [1, 6], not 7"),
        (["workload", "--out", "/tmp/x", "--rag-share", "2"], "must be in [0, 1], not 2"),
        (["demo", "--requests", "0"], "--requests: must be at least 1, not 0"),
        (["demo", "--requests", "many"], "--requests: must be an integer, not 'many'"),
        (["demo", "--seed", "-1"], "--seed: must be in [0, 2**63 - 1], not -1"),
        (["demo", "--seed", "1" * 30], "--seed: must be in"),
        (["demo", "--pages", "0"], "--pages: must be at least 1, not 0"),
        (["demo", "--page-size", "48"], "--page-size: must be a power of two up to 4096, not 48"),
        (["demo", "--page-size", "8192"], "--page-size: must be a power of two up to 4096"),
        (["demo", "--json", "/no/such/folder/x.json"], "there is no folder /no/such/folder"),
        (["demo", "--plot", "/no/such/folder/x.png"], "there is no folder /no/such/folder"),
        (["demo", "--json", "/"], "/ is a folder"),
        (["demo", "--corpus", "/no/such/corpus"], "/no/such/corpus: no such file or folder"),
        (["index", "/no/such/corpus"], "required: --out"),
        (["index", "/no/such/corpus", "--out", "/tmp/x"], "no such file or folder"),
        (["search", "/no/such/file", "query"], "/no/such/file: No such file or directory"),
        (["search", "/no/such/file", " "], "the query is empty"),
        (["search", "/no/such/file", "query", "-k", "0"], "-k: must be at least 1, not 0"),
        (["info", "/no/such/file"], "/no/such/file: No such file or directory"),
        (["warmup", "Cache"], "structures must be one of"),
    ],
)
def test_bad_arguments_get_one_line(capsys, arguments, message):
    (line,) = bad(capsys, *arguments)
    assert message in line


def test_bad_corpora_get_one_line(capsys, tmp_path):
    def refused(path, *more):
        return bad(capsys, "demo", "--corpus", path, *more)

    (tmp_path / "folder").mkdir()
    (line,) = refused(tmp_path / "folder")
    assert "no .txt, .md, .rst file in this folder" in line
    (tmp_path / "folder" / "a.txt").write_bytes(b"\x89PNG\0")
    (line,) = refused(tmp_path / "folder")
    assert "no text in it (1 skipped: " in line and "a.txt: binary, not text" in line
    lines = tmp_path / "c.jsonl"
    lines.write_text('{"id": 1, "text": "Fine."}\n{"id": 2\n')
    (line,) = refused(lines, "--strict")
    assert f"{lines}:2: not JSON" in line
    lines.write_text("{\n{\n")
    (line,) = refused(lines)
    assert "no text in it (2 skipped: " in line


def test_demo_needs_text_to_ask_about(capsys, tmp_path):
    (tmp_path / "a.txt").write_text("Only one short text.")
    assert "nothing to ask about" in bad(capsys, "demo", "--corpus", tmp_path)[-1]


@pytest.mark.parametrize("command", [["demo"], ["replay", "no trace"]])
def test_plot_without_matplotlib_is_refused_at_once(capsys, monkeypatch, tmp_path, command):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (line,) = bad(capsys, *command, "--plot", tmp_path / "x.png")
    assert "pip install 'llmds_nb[plot]'" in line


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_output_that_cannot_be_written_is_refused_at_once(capsys, tmp_path):
    tmp_path.chmod(0o500)
    (line,) = bad(capsys, "demo", "--json", tmp_path / "x.json")
    assert "cannot be written" in line


def test_version_and_help_are_no_errors(capsys):
    for arguments in (["--version"], ["--help"], ["demo", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    assert __version__ in capsys.readouterr().out


def test_info_names_versions_and_the_kernel_cache(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for name in ("llmds_nb", "python", "numba", "numpy", "scipy", "kernel cache"):
        assert f"\n{name}" in "\n" + out


def test_info_on_a_file_that_is_not_ours(capsys, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"not a saved structure, but long enough")
    assert "is truncated or not a safetensors file" in bad(capsys, "info", other)[-1]
    assert "Is a directory" in bad(capsys, "info", tmp_path)[-1]


def _refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_files_of_json_have_null_for_what_is_no_number(tmp_path):
    figures = {
        "a": [math.nan, 1.5, (math.inf, -math.inf)],
        "b": {"c": np.float64("nan"), "d": None},
    }
    path = tmp_path / "f.json"
    _write_json(path, figures)
    written = json.loads(path.read_text(), parse_constant=_refuse)
    assert written == {"a": [None, 1.5, [None, None]], "b": {"c": None, "d": None}}


def test_search_prints_json_with_null_for_a_score_that_is_no_number(capsys, monkeypatch):
    answers = [search.Answer(1, 7, score, "a", {}) for score in (-math.inf, math.nan, 0.5)]
    monkeypatch.setattr(search, "search", lambda *_: ([answers], False))
    assert main(["search", "file", "query", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=_refuse)
    assert [answer["score"] for answer in printed] == [None, None, 0.5]
