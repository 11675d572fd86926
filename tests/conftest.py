"""How much the tests do: some in CI, much with `pytest -m nightly` or HYPOTHESIS_PROFILE=nightly.

The tests marked `nightly` run in CI too, with less; `amount` gives each its number, and what they
report by `figures` is printed at the end: README's table "What it promises".
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings

# Before numpy is imported: two processes with two BLAS threads each wait for one another's cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Before haystack is: it would report its use over the network.
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
# Before triton is: its kernels run without a GPU, in its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "1")

if os.environ.get("NUMBA_BOUNDSCHECK") == "1":
    # No array has spare room, where a write beyond what was asked for would not be noticed.
    from llmds_nb._core import arrays

    arrays.grown_size = lambda old, needed, part=1: needed

# A shell starts background jobs with SIGINT ignored, which their children inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite("tests.bm25.oracle")

ROOT = Path(__file__).parents[1]

_COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck)}  # the first call compiles
settings.register_profile("quick", max_examples=30, stateful_step_count=30, **_COMMON)
settings.register_profile(  # for `tests/mutate.py`: the same examples every time, not shrunk
    "mutate",
    max_examples=30,
    stateful_step_count=30,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    **_COMMON,
)
settings.register_profile("nightly", max_examples=2000, stateful_step_count=100, **_COMMON)


def pytest_configure(config):
    expression = config.option.markexpr
    chosen = "nightly" in expression and "not nightly" not in expression
    name = os.environ.get("HYPOTHESIS_PROFILE", "nightly" if chosen else "quick")
    settings.load_profile(name)


def is_nightly():
    """Whether this is the long run."""
    return settings().max_examples > 1000


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist starts its workers
def pytest_sessionstart(session):
    """Before a run of all tests, compile on all cores what is not cached: no worker does it."""
    config = session.config
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if whole and not config.option.collectonly and not hasattr(config, "workerinput"):
        subprocess.run([sys.executable, "-m", "llmds_nb", "warmup"], cwd=ROOT, check=True)


@pytest.fixture(scope="session")
def amount():
    """amount(some, much) is `some` in CI and `much` nightly."""
    return lambda some, much: much if is_nightly() else some


@pytest.fixture(scope="session")
def many(amount):
    """How many operations a long random run makes: a million nightly, some in CI."""
    return amount(60_000, 1_000_000)


@pytest.fixture(scope="session")
def seconds(amount):
    """How long threads work against one another: a minute nightly, moments in CI."""
    return amount(3, 60)


@pytest.fixture
def figures(record_property):
    """figures(name=number, ...) prints the numbers beside the test's name at the end of a night."""

    def report(**numbers):
        for name, number in numbers.items():  # plain ones: pytest-xdist sends no others
            record_property(f"figure {name}", getattr(number, "item", lambda n=number: n)())

    return report


def pytest_terminal_summary(terminalreporter):
    if not is_nightly():
        return
    lines = [
        (report.nodeid, name.removeprefix("figure "), number)
        for report in terminalreporter.getreports("passed")
        for name, number in getattr(report, "user_properties", ())
        if report.when == "call" and name.startswith("figure ")
    ]
    if lines:
        terminalreporter.section("figures")
    for nodeid, name, number in sorted(lines):
        terminalreporter.line(f"{nodeid}  {name} = {number}")


@pytest.fixture(scope="session")
def shared_data():
    """The shared data: LLMDS_DATA, or ../shared/data beside the repository; else the test skips."""
    default = ROOT.parent / "shared" / "data"
    folder = Path(os.environ.get("LLMDS_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}: set LLMDS_DATA")
    return folder


class Judged(NamedTuple):
    """A corpus with queries whose answers people have judged."""

    ids: list[int]
    texts: list[str]
    queries: list[str]
    gains: list[dict[int, int]]  # for each query, from a relevant document's id to its gain


@pytest.fixture(scope="session")
def vaswani(shared_data):
    """11,429 abstracts of physics and 93 queries, in the files of BEIR."""
    folder = shared_data / "vaswani"
    documents, queries = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("corpus.jsonl", "queries.jsonl")
    )
    gains = {query["_id"]: {} for query in queries}
    for row in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, gain = row.split("\t")
        gains[query][int(document)] = int(gain)
    return Judged(
        [int(document["_id"]) for document in documents],
        [document["text"] for document in documents],
        [query["text"] for query in queries],
        list(gains.values()),
    )


@pytest.fixture
def graph_only(monkeypatch):
    """HNSW walks its graph even where a scan would be faster."""
    monkeypatch.setattr("llmds_nb.hnsw.search.SCAN_FACTOR", 0)
