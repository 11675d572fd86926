"""The command line: `llmds-nb`, `python -m llmds_nb`.

Exit codes: 0 done; 1 a check of the demo or a claim failed; 2 bad input, with one line on stderr;
130 interrupted.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from .. import __version__
from .arguments import at_most, natural, output_file, page_size, positive, within
from .errors import BadInput
from .replay.arguments import add_arguments, options_of, sweep_axes


class _Parser(argparse.ArgumentParser):
    def error(self, message):  # argparse would print the usage above it
        raise BadInput(f"{message} (see {self.prog} --help)")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    if "numpy" not in sys.modules:
        # LSA's matrices are small: one BLAS thread takes 3 s for those of the demo, but two take
        # more than 40 s when one of them waits for a core on which kernels compile.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        arguments = _parser().parse_args(argv)
        return arguments.run(arguments)
    except BadInput as error:
        line = " ".join(str(error).split())
        print(f"llmds-nb: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("llmds-nb: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser():
    parser = _Parser(
        prog="llmds-nb",
        description="Data structures under LLM inference and retrieval.",
        epilog="Exit codes: 0 done, 1 a check or a claim failed, 2 bad input.",
    )
    parser.add_argument("--version", action="version", version=f"llmds-nb {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo", help="serve a RAG workload on real text and judge the result"
    )
    demo.set_defaults(run=_demo)
    demo.add_argument(
        "--corpus",
        metavar="PATH",
        help="folder of .txt/.md/.rst files, or .jsonl with id and text; default: the docstrings "
        "of the installed standard library, numpy and scipy",
    )
    demo.add_argument("--strict", action="store_true", help="refuse broken .jsonl lines")
    demo.add_argument("--requests", type=positive, metavar="N", help="default 2000")
    demo.add_argument("--seed", type=natural, default=0, metavar="N", help="default 0")
    demo.add_argument("--pages", type=positive, default=2048, metavar="N", help="default 2048")
    demo.add_argument(
        "--page-size", type=page_size, default=64, metavar="TOKENS", help="default 64"
    )
    demo.add_argument("--json", type=output_file, metavar="FILE", help="write every figure to FILE")
    demo.add_argument(
        "--plot", type=output_file, metavar="FILE.png", help="draw the run (needs llmds_nb[plot])"
    )
    demo.add_argument(
        "--quick", action="store_true", help="an eighth of the docstrings and 300 requests"
    )

    index = commands.add_parser("index", help="build a hybrid index of texts and save it")
    index.set_defaults(run=_index)
    index.add_argument("path", metavar="PATH", help="folder of .txt/.md/.rst files, or .jsonl")
    index.add_argument("--out", type=output_file, required=True, metavar="FILE")
    index.add_argument("--strict", action="store_true", help="refuse broken .jsonl lines")

    search = commands.add_parser("search", help="ask a saved index")
    search.set_defaults(run=_search)
    search.add_argument("file", metavar="FILE", help="what `index` wrote")
    search.add_argument("query", metavar="QUERY")
    search.add_argument("-k", type=positive, default=10, help="number of answers, default 10")
    search.add_argument("--json", action="store_true", help="print JSON")

    replay = commands.add_parser(
        "replay", help="replay a request trace over the real structures, on a virtual clock",
        description="Traces: Mooncake JSONL, Azure LLM inference CSV, or the JSONL of `workload`, "
        "gzipped or not.",
    )  # fmt: skip
    replay.set_defaults(run=_replay)
    add_arguments(replay)

    workload = commands.add_parser(
        "workload", help="write a seeded workload of conversations as JSONL, to replay"
    )
    workload.set_defaults(run=_workload)
    workload.add_argument("--out", type=output_file, required=True, metavar="FILE.jsonl")
    for name, kind, default, text in (
        ("requests", at_most(10**7), 2000, "requests"),
        ("rate", within(0.01, 1e6), 8.0, "requests per second on average"),
        ("seed", natural, 0, "of everything that is drawn"),
        ("turns", within(1, 6), 3.0, "turns of a conversation on average, 1 to 6"),
        ("pause-s", within(0, 1e6), 20.0, "seconds before the next turn on average"),
        ("systems", at_most(10**6), 20, "system prompts"),
        ("rag-share", within(0, 1), 0.5, "conversations that retrieve chunks"),
        ("chunks", at_most(10**6), 1000, "chunks there are"),
        ("chunks-per-turn", at_most(100), 3, "chunks that a turn brings"),
        ("zipf", within(0, 10), 1.0, "exponent of all popularities"),
    ):
        workload.add_argument(f"--{name}", type=kind, default=default, metavar="N",
                              help=f"{text}, default {default}")  # fmt: skip

    claims = commands.add_parser(
        "claims", help="measure here and now what the design promises; exit code 1 if one fails"
    )
    claims.set_defaults(run=_claims)
    claims.add_argument("--seed", type=natural, default=0, metavar="N", help="default 0")
    claims.add_argument(
        "--quick", action="store_true", help="sizes divided by 10: a look, not the claims"
    )
    claims.add_argument(
        "--json", type=output_file, metavar="FILE", help="write every figure to FILE"
    )
    claims.add_argument(
        "--report", type=output_file, metavar="FILE.md|.html|.docx",
        help="write a report with figures (needs llmds_nb[report])",
    )  # fmt: skip

    warmup = commands.add_parser("warmup", help="compile all kernels into the disk cache")
    warmup.set_defaults(run=_warmup)
    warmup.add_argument("structures", nargs="*", metavar="STRUCTURE", help="default: all")

    info = commands.add_parser("info", help="versions, kernel cache, what a saved file is")
    info.set_defaults(run=_info)
    info.add_argument("file", nargs="?", metavar="FILE")
    return parser


# ---- commands -----------------------------------------------------------------------------------


def _demo(arguments):
    from .demo import report, run as demo
    from .progress import Progress

    if arguments.plot:
        from . import plots

        plots.require_matplotlib()
    n_requests = arguments.requests or (300 if arguments.quick else 2000)
    options = demo.Options(
        corpus=arguments.corpus,
        strict=arguments.strict,
        requests=n_requests,
        seed=arguments.seed,
        pages=arguments.pages,
        page_size=arguments.page_size,
        quick=arguments.quick,
    )
    result = demo.run(options, Progress.on_stderr())
    if arguments.json:
        _write(arguments.json, _as_json(result))
    if arguments.plot:
        plots.draw(result, arguments.plot)
    print(report.table(result))
    failed = [check for check in result["checks"] if not check["passed"]]
    for check in failed:
        print(f"llmds-nb: check failed: {check['name']}: {check['detail']}", file=sys.stderr)
    return 1 if failed else 0


def _replay(arguments):
    from . import plots
    from .progress import Progress
    from .replay import capacity, replay, report, sweep, traces

    axes = sweep_axes(arguments.sweep) if arguments.sweep else None
    if arguments.plot:
        plots.require_matplotlib()
    progress = Progress.on_stderr()
    options = options_of(arguments)
    if axes:
        result = sweep.run(
            arguments.trace, arguments.limit, options, axes, arguments.jobs, progress
        )
        text = report.sweep_table(result)
    else:
        with progress.stage("read"):
            trace = traces.read(arguments.trace, limit=arguments.limit)
        with progress.stage("replay", len(trace), "requests") as done:
            result = replay.run(trace, options, done)
        result["conditions"]["trace"] = Path(arguments.trace).name
        if arguments.plot:
            result["curve"] = capacity.around(trace, options, progress)
        text = report.table(result)
    if arguments.json:
        _write(arguments.json, report.to_json(result))
    if arguments.plot:
        from .replay import plots as replay_plots

        draw = replay_plots.draw_sweep if axes else replay_plots.draw_replay
        draw(result, arguments.plot)
    print(text)
    return 0


def _workload(arguments):
    from .progress import Progress
    from .replay import workload

    options = workload.Options(
        **{name: getattr(arguments, name) for name in workload.Options._fields}
    )
    try:
        with Progress.on_stderr().stage("write", options.requests, "requests") as done:
            n_tokens = workload.write(options, arguments.out, done)
    except OSError as error:
        raise BadInput(f"{arguments.out}: {error.strerror}") from None
    print(f"{arguments.out}: {options.requests:,} requests, {n_tokens:,} prompt tokens")
    return 0


def _claims(arguments):
    from .claims import claims
    from .progress import Progress

    if arguments.report:
        from . import paper, plots
        from .claims import report as claims_report

        paper.require(arguments.report)
        plots.require_matplotlib("--report", "report")
    result = claims.run(
        Progress.on_stderr(), seed=arguments.seed, smaller=10 if arguments.quick else 1
    )
    if arguments.json:
        _write(arguments.json, _as_json(result))
    if arguments.report:
        paper.write(claims_report.paper(result), arguments.report)
    print(claims.table(result))
    failed = [claim["name"] for claim in result["claims"] if not claim["passed"]]
    for name in failed:
        print(f"llmds-nb: claim failed: {name}", file=sys.stderr)
    return 1 if failed else 0


def _as_json(result):
    return json.dumps(result, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _write(path, content):
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None


def _index(arguments):
    from . import index
    from .progress import Progress

    progress = Progress.on_stderr()
    n_documents, n_bytes = index.build(
        arguments.path, arguments.out, progress, strict=arguments.strict
    )
    print(f"{arguments.out}: {n_documents:,} documents, {n_bytes:,} bytes")
    return 0


def _search(arguments):
    from . import index

    answers, by_words = index.search(arguments.file, arguments.query, arguments.k)
    if by_words:
        print("note: the file holds no encoder; searched by words alone", file=sys.stderr)
    if arguments.json:
        print(json.dumps([answer._asdict() for answer in answers], indent=2))
        return 0
    if not answers:
        print("no document matches")
    width = max((len(answer.source) for answer in answers), default=0)
    for answer in answers:
        print(
            f"{answer.rank:>3}  {answer.score:.4f}  {answer.id:>8}  "
            f"{answer.source:<{width}}  {answer.first_line}"
        )
    return 0


def _warmup(arguments):
    import time

    from .. import warmup

    start = time.perf_counter()
    try:
        names = warmup(arguments.structures or None, progress=sys.stderr.isatty())
        if not arguments.structures:
            from .replay import replay

            replay.warmup()
    except ValueError as error:
        raise BadInput(str(error)) from None
    print(f"{len(names)} structures compiled in {time.perf_counter() - start:.1f} s")
    return 0


def _info(arguments):
    from . import info

    for name, value in info.describe(arguments.file):
        print(f"{name:<14} {value}")
    return 0
