"""The command line: `llmds-nb`, `python -m llmds_nb`.

Exit codes: 0 done; 1 a check of the demo or a claim failed; 2 bad input, with one line on stderr;
130 interrupted; 143 terminated.
"""

import argparse
import atexit
import json
import math
import multiprocessing
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import NoReturn

from .. import LlmdsError, __version__
from .._core.files import replace_file
from . import arguments as a, streams
from .errors import BadInput, bad_input
from .generate.arguments import add_generate_arguments
from .index.arguments import add_index_arguments, add_search_arguments
from .progress import Progress
from .replay.arguments import add_arguments, options_of, sweep_axes
from .serve.arguments import add_serve_arguments

_INTERRUPTED, _TERMINATED = 130, 143
_INDEX = """A long text is split by paragraphs into chunks, each a document with the metadata
source, start and stop. A row of a CSV file and a line of a JSONL file is a text with an id; its
other columns, or the object in its field metadata, are metadata, too."""

_GENERATE = """A model is a folder on this machine; nothing is downloaded. Requests share the pages
of equal prefixes. Without a prompt, requests of random tokens are served, for the figures."""

_SERVE = """POST /search and /documents, GET /health and /metrics; GET /openapi.json describes all.
The environment variable LLMDS_API_KEY holds the keys of those who may call, between commas. The
first Ctrl-C or SIGTERM finishes what is under way and saves, a second one ends at once."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command as Ctrl-C does, with the processes that it started."""


class _Parser(argparse.ArgumentParser):
    def error(self, message):  # argparse would print the usage above it
        raise BadInput(f"{message} (see {self.prog} --help)")


def command() -> NoReturn:
    """Run the command of this process and end it.

    After Ctrl-C or SIGTERM at once: the end of the interpreter would wait for threads that compile
    kernels.
    """

    def terminate(number, frame):
        raise _Terminated

    signal.signal(signal.SIGTERM, terminate)
    code = main()
    if code in (_INTERRUPTED, _TERMINATED):
        for process in multiprocessing.active_children():
            process.terminate()
        atexit._run_exitfuncs()  # frees the semaphores of process pools
        os._exit(code)
    sys.exit(code)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    if "numpy" not in sys.modules:
        # LSA's matrices are small: one BLAS thread takes 3 s for those of the demo, but two take
        # more than 40 s when one of them waits for a core on which kernels compile.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    streams.prepare()
    try:
        try:
            arguments = _parser().parse_args(argv)
            return arguments.run(arguments)
        finally:
            streams.flush(sys.stdout)
    except (BadInput, LlmdsError) as error:
        _complain(" ".join(str(error).split()))
        return 2
    except _Terminated:
        _complain("terminated")
        return _TERMINATED
    except KeyboardInterrupt:
        _complain("interrupted")
        return _INTERRUPTED


def _say(text):
    streams.write(sys.stdout, text)


def _complain(line):
    streams.write(sys.stderr, f"llmds-nb: {line}")


def _parser():
    parser = _Parser(
        prog="llmds-nb",
        description="Data structures under LLM inference and retrieval.",
        epilog="Exit codes: 0 done, 1 a check or a claim failed, 2 bad input.",
    )
    parser.add_argument("--version", action="version", version=f"llmds-nb {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add_command(name, run, text, description=None):
        made = commands.add_parser(name, help=text, description=description)
        made.set_defaults(run=run)
        return made.add_argument

    add = add_command("demo", _demo, "serve a RAG workload on real text and judge the result")
    docstrings = "the docstrings of the installed standard library, numpy and scipy"
    formats = "folder of .txt/.md/.rst files, or .jsonl"
    add("--corpus", metavar="PATH", help=f"{formats} with id and text; default: {docstrings}")
    add("--strict", **a.STRICT)
    add("--requests", type=a.positive, metavar="N", help="default 2000")
    add("--seed", **a.SEED)
    add("--pages", type=a.positive, default=2048, metavar="N", help="default 2048")
    add("--page-size", type=a.page_size, default=64, metavar="TOKENS", help="default 64")
    add("--json", **a.JSON)
    drawn = "draw the run (needs llmds_nb[plot])"
    add("--plot", type=a.output_file, metavar="FILE.png", help=drawn)
    add("--quick", action="store_true", help="an eighth of the docstrings and 300 requests")
    text = "serve 64 requests with this model: a folder, or random:llama, random:qwen3, random:gpt2"
    add("--model", type=a.as_typed, metavar="DIR", help=text)

    over = "build a hybrid index of texts and save it, or add to one"
    add_index_arguments(add_command("index", _index, over, _INDEX))
    add_search_arguments(add_command("search", _search, "ask a saved index"))

    over = "serve a saved index, or a model, over HTTP"
    add_serve_arguments(add_command("serve", _serve, over, _SERVE))

    over = "generate text with a Hugging Face model over a paged KV cache"
    add_generate_arguments(add_command("generate", _generate, over, _GENERATE))

    add = add_command("evaluate", _evaluate, "measure ranking quality on a judged set (BEIR)")
    add("folder", metavar="DIR", help="with corpus.jsonl, queries.jsonl and qrels/*.tsv, or .gz")
    add("--split", metavar="NAME", help="file of judgements to report, default test")
    text = "that the weight is tuned on, default dev or train, else halves of what is reported"
    add("--tune-split", metavar="NAME", help=text)
    text = "of stop words and stemmer, or none; default english"
    add("--language", default="english", metavar="NAME", help=text)
    add("--no-stemming", action="store_true", help="words as they are")
    text = "lsa (default), none, or a name that RetrievalPipeline takes"
    add("--encoder", default="lsa", metavar="NAME", help=text)
    text = "vectors in place of an encoder, a row for each line"
    add("--vectors", type=Path, nargs=2, metavar=("DOCS.npy", "QUERIES.npy"), help=text)
    add("--seed", **a.SEED)
    add("--strict", **a.STRICT)
    add("--save-run", type=a.output_folder, metavar="DIR", help="write each ranking as a TREC run")
    add("--json", **a.JSON)

    traces = "Mooncake JSONL, Azure LLM inference CSV, or the JSONL of `workload`, gzipped or not"
    over = "replay a request trace over the real structures, on a virtual clock"
    add_arguments(add_command("replay", _replay, over, f"Traces: {traces}."))

    add = add_command(
        "workload", _workload, "write a seeded workload of conversations as JSONL, to replay"
    )
    add("--out", type=a.output_file, required=True, metavar="FILE.jsonl")
    for name, kind, default, text in (
        ("requests", a.at_most(10**7), 2000, "requests"),
        ("rate", a.within(0.01, 1e6), 8.0, "requests per second on average"),
        ("seed", a.natural, 0, "of everything that is drawn"),
        ("turns", a.within(1, 6), 3.0, "turns of a conversation on average, 1 to 6"),
        ("pause-s", a.within(0, 1e6), 20.0, "seconds before the next turn on average"),
        ("systems", a.at_most(10**6), 20, "system prompts"),
        ("rag-share", a.within(0, 1), 0.5, "conversations that retrieve chunks"),
        ("chunks", a.at_most(10**6), 1000, "chunks there are"),
        ("chunks-per-turn", a.at_most(100), 3, "chunks that a turn brings"),
        ("zipf", a.within(0, 10), 1.0, "exponent of all popularities"),
    ):
        text = f"{text}, default {default}"
        add(f"--{name}", type=kind, default=default, metavar="N", help=text)

    text = "measure here and now what the design promises; exit code 1 if one fails"
    add = add_command("claims", _claims, text)
    add("--seed", **a.SEED)
    add("--quick", action="store_true", help="sizes divided by 10: a look, not the claims")
    add("--json", **a.JSON)
    text = "write a report with figures (needs llmds_nb[report])"
    add("--report", type=a.output_file, metavar="FILE.md|.html|.docx", help=text)

    add = add_command("warmup", _warmup, "compile all kernels into the disk cache")
    add("structures", nargs="*", metavar="STRUCTURE", help="default: all")
    text = "processes at a time, default as many as there are cores"
    add("--jobs", type=a.positive, metavar="N", help=text)
    text = "compile for this very CPU, even if the installation brought kernels that fit it"
    add("--native", action="store_true", help=text)

    add = add_command("info", _info, "versions, kernel cache, what a saved file is")
    add("file", nargs="?", metavar="FILE")
    return parser


def _demo(arguments):
    from .demo import rag, report, run as demo

    if arguments.plot:
        from . import plots

        if arguments.model:
            raise BadInput("--plot draws the run on the virtual clock, without --model")
        plots.require_matplotlib()
    given = {name: getattr(arguments, name) for name in rag.Options._fields}
    few = 64 if arguments.model else 300 if arguments.quick else 2000
    given["requests"] = arguments.requests or few
    result = demo.run(rag.Options(**given), Progress(sys.stderr))
    _write_json(arguments.json, result)
    if arguments.plot:
        plots.draw(result, arguments.plot)
    _say(report.table(result))
    failed = [check for check in result["checks"] if not check["passed"]]
    return _exit_code("check", [f"{check['name']}: {check['detail']}" for check in failed])


def _replay(arguments):
    from . import plots
    from .replay import capacity, replay, report, sweep, traces

    axes = sweep_axes(arguments.sweep) if arguments.sweep else None
    if arguments.plot:
        plots.require_matplotlib()
    progress, options = Progress(sys.stderr), options_of(arguments)
    reading = {"limit": arguments.limit, "block_size": arguments.block_size}
    read = partial(traces.read, arguments.trace, **reading)
    if axes:
        result = sweep.run(read, options, axes, arguments.jobs, progress)
    else:
        with progress.stage("read"):
            trace = read()
        with progress.stage("replay", len(trace), "requests") as done:
            result = replay.run(trace, options, done)
        if arguments.plot:
            result["curve"] = capacity.around(trace, options, progress)
    result["conditions"]["trace"] = Path(arguments.trace).name
    text = report.sweep_table(result) if axes else report.table(result)
    _write_json(arguments.json, report.figures(result))
    if arguments.plot:
        from .replay import plots as replay_plots

        draw = replay_plots.draw_sweep if axes else replay_plots.draw_replay
        draw(result, arguments.plot)
    _say(text)
    return 0


def _workload(arguments):
    from .replay import workload

    given = (getattr(arguments, name) for name in workload.Options._fields)
    options, out = workload.Options(*given), arguments.out
    progress = Progress(sys.stderr)
    with bad_input(out), progress.stage("write", options.requests, "requests") as done:
        n_tokens = workload.write(options, out, done)
    _say(f"{out}: {options.requests:,} requests, {n_tokens:,} prompt tokens")
    return 0


def _claims(arguments):
    from .claims import claims

    if arguments.report:
        from . import paper, plots
        from .claims import report as claims_report

        paper.require(arguments.report)
        plots.require_matplotlib("--report", "report")
    smaller = 10 if arguments.quick else 1
    result = claims.run(Progress(sys.stderr), seed=arguments.seed, smaller=smaller)
    _write_json(arguments.json, result)
    if arguments.report:
        paper.write(claims_report.paper(result), arguments.report)
    _say(claims.table(result))
    return _exit_code("claim", [one["name"] for one in result["claims"] if not one["passed"]])


def _write_json(path, figures):
    if path:
        text = _json(figures, sort_keys=True) + "\n"
        with bad_input(path):
            replace_file(str(path), [text.encode()])


def _json(figures, **options):
    """Strict JSON, which has no NaN and no infinity: null."""
    return json.dumps(_plain(figures), indent=2, allow_nan=False, **options)


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _exit_code(kind, failed):
    for line in failed:
        _complain(f"{kind} failed: {line}")
    return 1 if failed else 0


def _index(arguments):
    from .index import run

    job, out = run.job_of(arguments), arguments.out
    updates = arguments.add or arguments.remove or arguments.refit
    if updates:
        result = run.update(job, arguments.remove, out)
    else:
        result = run.build(job, out)
    job.report.say(job.progress)
    _say(f"{out}: {run.described(result, updates)}")
    return 0


def _serve(arguments):
    from .serve import run

    run.run(arguments)
    return 0


def _generate(arguments):
    from .generate import run, serving

    result = run.run(arguments)
    _write_json(arguments.json, result)
    _say("\n".join(serving.table(result["figures"])))
    held = result["held_at_the_end"].items()
    failed = [f"{n} {name} at the end" for name, n in held if n]
    failed += [answer["error"] for answer in result["answers"] if answer["error"]]
    return _exit_code("generate", failed)


def _evaluate(arguments):
    from .evaluate import measures, report, run

    given = arguments
    options = run.Options(
        given.folder, given.split, given.tune_split,
        None if given.language == "none" else given.language, not given.no_stemming,
        given.encoder, given.vectors and tuple(given.vectors), given.seed, given.strict,
        given.save_run is not None,
    )  # fmt: skip
    result = run.run(options, Progress(sys.stderr))
    _write_json(given.json, report.figures(result))
    if given.save_run is not None:
        measures.write_runs(given.save_run, result["runs"])
    _say(report.table(result))
    return 0


def _search(arguments):
    from . import search

    queries = search.queries_of(arguments.query, arguments.queries)
    options = {name: getattr(arguments, name) for name in ("where", "min_score", "diversity")}
    given = {name: value for name, value in options.items() if value is not None}
    if arguments.group_by is not None:
        given["group_by"] = arguments.group_by
    answers, by_words = search.search(arguments.file, queries, arguments.k, **given)
    if by_words:
        streams.write(sys.stderr, "note: the file holds no encoder; searched by words alone")
    if arguments.json:
        found = [[answer._asdict() for answer in of_query] for of_query in answers]
        if arguments.queries is None:
            _say(_json(found[0]))
        else:
            pairs = zip(queries, found, strict=True)
            _say(_json([{"query": query, "hits": hits} for query, hits in pairs]))
        return 0
    for query, of_query in zip(queries, answers, strict=True):
        if arguments.queries is not None:
            _say(f"{query}:")
        for line in search.lines_of(of_query, query):
            _say(line)
        if not of_query:
            _say("no document matches")
    return 0


def _warmup(arguments):
    from .. import warmup

    if arguments.native:
        os.environ["LLMDS_PREBUILT"] = "0"  # before any kernel is looked up; children inherit it
    start = time.perf_counter()
    try:
        names = warmup(
            arguments.structures or None, progress=Progress(sys.stderr).bars, jobs=arguments.jobs
        )
        if not arguments.structures:
            from ..attention import warmup as warmup_attention
            from .replay import replay

            replay.warmup()
            warmup_attention()
    except ValueError as error:
        raise BadInput(str(error)) from None
    _say(f"{len(names)} structures compiled in {time.perf_counter() - start:.1f} s")
    return 0


def _info(arguments):
    from . import info

    for name, value in info.describe(arguments.file):
        _say(f"{name:<14} {value}")
    return 0
