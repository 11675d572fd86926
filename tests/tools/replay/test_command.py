"""`llmds-nb workload`, `replay` and its sweep: what they print, write and draw."""

import json
from pathlib import Path

import pytest

from llmds_nb.tools.main import main

SMALL = ["--pages", "400", "--page-size", "64"]


@pytest.fixture(scope="module")
def workload(tmp_path_factory):
    path = tmp_path_factory.mktemp("replay") / "w.jsonl"
    assert main(["workload", "--out", str(path), "--requests", "150", "--seed", "2"]) == 0
    return str(path)


def run(capsys, *arguments):
    """Standard output of a command that succeeds."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def test_two_runs_print_the_same_table(capsys, workload):
    one, same = (run(capsys, "replay", workload, *SMALL, "--seed", "7") for _ in range(2))
    assert one == same
    for text in ("150", "prefix hit ratio", "TTFT", "aging, speed 1, seed 7", "preemptions"):
        assert text in one
    assert "step = 8 ms + 0.02 * prefill tokens + 0.03 * decoding + 2e-05 * KV tokens" in one


def test_the_cost_model_is_given_and_printed(capsys, workload):
    given = ["--step-ms", "1", "--prefill-ms", "0", "--decode-ms", "0.5", "--kv-ms", "0"]
    out = run(capsys, "replay", workload, *SMALL, *given)
    assert "step = 1 ms + 0 * prefill tokens + 0.5 * decoding + 0 * KV tokens" in out


def test_cache_only_prints_no_engine_and_json_has_definitions(capsys, workload, tmp_path):
    path = tmp_path / "r.json"
    out = run(capsys, "replay", workload, *SMALL, "--cache-only", "--json", path, "--limit", "99")
    assert "looked up one after the other" in out and "TTFT" not in out
    written = json.loads(path.read_text())
    assert f"{written['cache']['hit_ratio']:.4f}" in out
    assert written["conditions"]["requests"] == 99 and "samples" not in written
    assert set(written["cache"]) & set(written["definitions"])


def test_replicas_are_listed_beside_one_big_cache(capsys, workload):
    out = run(capsys, "replay", workload, *SMALL, "--replicas", "2", "--router", "round-robin")
    for text in ("2 replicas, round-robin", "one big cache", "replica 0", "replica 1"):
        assert text in out


def test_notes_and_refusals_are_shown(capsys, tmp_path):
    path = tmp_path / "t.jsonl"
    lines = [(3, 9), (1, 9), (2, 900)]
    path.write_text("".join(json.dumps(
        {"arrival_ms": t, "prompt": t, "prompt_tokens": n, "output_tokens": 1}) + "\n"
        for t, n in lines))  # fmt: skip
    out = run(capsys, "replay", path, "--pages", "2", "--page-size", "16")
    assert "note: 2 requests stood after a later one: sorted by arrival" in out
    assert "refused, too large" in out


@pytest.mark.parametrize("more", [[], ["--cache-only"], ["--replicas", "2"]])
def test_a_plot_and_its_curves(capsys, workload, tmp_path, more):
    png, path = tmp_path / "p.png", tmp_path / "p.json"
    out = run(capsys, "replay", workload, *SMALL, "--plot", png, "--json", path, *more)
    assert png.read_bytes()[:4] == b"\x89PNG"
    assert "Hit ratio against capacity" in out and "belady" in out
    curve = json.loads(path.read_text())["curve"]
    assert curve["capacity"] == [25, 50, 100, 200, 400, 800, 1600]
    assert curve["lru"][0] is None and curve["lru"][-1] <= curve["belady"][-1]


def test_a_plot_of_refusals_only_is_drawn(capsys, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"arrival_ms": 1, "prompt": 0, "prompt_tokens": 99, "output_tokens": 1}\n')
    out = run(capsys, "replay", path, "--pages", "2", "--page-size", "16", "--plot",
              tmp_path / "p.png")  # fmt: skip
    assert "refused, too large                     1" in out


@pytest.mark.parametrize("more", [["--cache-only"], ["--jobs", "2"]])
def test_a_sweep_equals_single_replays(capsys, workload, tmp_path, more):
    png, path = tmp_path / "s.png", tmp_path / "s.json"
    axes = ["--sweep", "eviction=lru,path-lrfu", "pages=200,400"]
    out = run(capsys, "replay", workload, "--page-size", "64", *axes, "--json", path, "--plot", png,
              *more)  # fmt: skip
    assert png.read_bytes()[:4] == b"\x89PNG"
    points = json.loads(path.read_text())["points"]
    assert [list(p["values"].values()) for p in points] == [
        ["lru", 200], ["lru", 400], ["path-lrfu", 200], ["path-lrfu", 400],
    ]  # fmt: skip
    single = tmp_path / "one.json"
    run(capsys, "replay", workload, "--page-size", "64", "--pages", "400", "--eviction",
        "path-lrfu", "--json", single, *(m for m in more if m == "--cache-only"))  # fmt: skip
    alone = json.loads(single.read_text())
    assert points[3]["cache"] == alone["cache"]
    assert points[3].get("serving") == alone.get("serving")
    lines = out.splitlines()
    assert lines[-5].split()[:3] == ["eviction", "pages", "hit"]
    assert lines[-4].split()[:2] == ["lru", "200"]
    assert len({len(line) for line in lines[-5:]}) == 1


def test_a_sweep_over_names_alone_and_over_one_value(capsys, workload, tmp_path):
    for axes in (["policy=fcfs,fair", "batching=static,continuous"], ["pages=300"]):
        out = run(capsys, "replay", workload, *SMALL, "--jobs", "1", "--sweep", *axes, "--plot",
                  tmp_path / "s.png")  # fmt: skip
        assert "TTFT p95" in out


def test_a_sweep_with_fewer_pages_than_replicas_is_refused(capsys, workload):
    assert main(["replay", workload, "--sweep", "pages=2,9", "replicas=1,3"]) == 2
    assert "--pages 2 are fewer than --replicas 3" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--step-ms", "1e6"], ["--speed", "1e-6"]])
def test_times_beyond_the_virtual_clock_are_refused(capsys, monkeypatch, tmp_path, options):
    monkeypatch.setattr("llmds_nb.tools.replay.replicas._LAST_NS", 10**17)
    path = tmp_path / "t.jsonl"
    request = {"prompt": 0, "prompt_tokens": 9, "output_tokens": 200_000}
    times = (0, 1e6)
    path.write_text("".join(json.dumps({"arrival_ms": t, **request}) + "\n" for t in times))
    assert main(["replay", str(path), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()[1:]
    assert "the virtual clock passes 73 years" in line


def test_an_unknown_suffix_is_one_line(capsys, workload, tmp_path):
    assert (
        main(["replay", workload, *SMALL, "--cache-only", "--plot", str(tmp_path / "x.nope")]) == 2
    )
    assert "x.nope" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("block", ["replay", "sweep"])
def test_the_readme_shows_what_the_commands_print(capsys, monkeypatch, tmp_path, block):
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    before, _, after = readme.partition(f"<!-- {block} -->\n```text\n")
    shown = after.partition("\n```\n")[0]
    commands = before.rpartition("```bash\n")[2].partition("```")[0].splitlines()
    monkeypatch.chdir(tmp_path)
    if block == "sweep":
        run(capsys, "workload", "--out", "chat.jsonl")
    for command in commands:
        words = command.partition("#")[0].split()
        assert words[0] == "llmds-nb"
        out = run(capsys, *words[1:])
    assert out.rstrip() == shown
