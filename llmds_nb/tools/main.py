"""The command line: `llmds-nb`, `python -m llmds_nb`.

Exit codes: 0 done; 1 a check of the demo or a claim failed; 2 bad input, with one line on stderr.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path

from .. import __version__
from .errors import BadInput


class _Parser(argparse.ArgumentParser):
    def error(self, message):  # argparse would print the usage above it
        raise BadInput(f"{message} (see {self.prog} --help)")


def main(argv=None) -> int:
    """Run one command; returns the exit code."""
    if "numpy" not in sys.modules:
        # The matrices of LSA are small: one BLAS thread takes 3 s for the demo's, and two that wait
        # for a core, because kernels compile on it or others work there, take more than 40.
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
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has had enough
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
    demo.add_argument("--requests", type=_positive, metavar="N", help="default 2000")
    demo.add_argument("--seed", type=_natural, default=0, metavar="N", help="default 0")
    demo.add_argument("--pages", type=_positive, default=2048, metavar="N", help="default 2048")
    demo.add_argument(
        "--page-size", type=_page_size, default=64, metavar="TOKENS", help="default 64"
    )
    demo.add_argument("--json", type=_output, metavar="FILE", help="write every figure to FILE")
    demo.add_argument(
        "--plot", type=_output, metavar="FILE.png", help="draw the run (needs llmds_nb[plot])"
    )
    demo.add_argument(
        "--quick", action="store_true", help="an eighth of the docstrings and 300 requests"
    )

    index = commands.add_parser("index", help="build a hybrid index of texts and save it")
    index.set_defaults(run=_index)
    index.add_argument("path", metavar="PATH", help="folder of .txt/.md/.rst files, or .jsonl")
    index.add_argument("--out", type=_output, required=True, metavar="FILE")
    index.add_argument("--strict", action="store_true", help="refuse broken .jsonl lines")

    search = commands.add_parser("search", help="ask a saved index")
    search.set_defaults(run=_search)
    search.add_argument("file", metavar="FILE", help="what `index` wrote")
    search.add_argument("query", metavar="QUERY")
    search.add_argument("-k", type=_positive, default=10, help="number of answers, default 10")
    search.add_argument("--json", action="store_true", help="print JSON")

    _add_replay(commands)

    workload = commands.add_parser(
        "workload", help="write a seeded workload of conversations as JSONL, to replay"
    )
    workload.set_defaults(run=_workload)
    workload.add_argument("--out", type=_output, required=True, metavar="FILE.jsonl")
    for name, kind, default, text in (
        ("requests", _limited(10**7), 2000, "requests"),
        ("rate", _within(0.01, 1e6), 8.0, "requests per second on average"),
        ("seed", _natural, 0, "of everything that is drawn"),
        ("turns", _within(1, 6), 3.0, "turns of a conversation on average, 1 to 6"),
        ("pause-s", _within(0, 1e6), 20.0, "seconds before the next turn on average"),
        ("systems", _limited(10**6), 20, "system prompts"),
        ("rag-share", _within(0, 1), 0.5, "conversations that retrieve chunks"),
        ("chunks", _limited(10**6), 1000, "chunks there are"),
        ("chunks-per-turn", _limited(100), 3, "chunks that a turn brings"),
        ("zipf", _within(0, 10), 1.0, "exponent of all popularities"),
    ):
        workload.add_argument(f"--{name}", type=kind, default=default, metavar="N",
                              help=f"{text}, default {default}")  # fmt: skip

    claims = commands.add_parser(
        "claims", help="measure here and now what the design promises; exit code 1 if one fails"
    )
    claims.set_defaults(run=_claims)
    claims.add_argument("--seed", type=_natural, default=0, metavar="N", help="default 0")
    claims.add_argument(
        "--quick", action="store_true", help="sizes divided by 10: a look, not the claims"
    )
    claims.add_argument("--json", type=_output, metavar="FILE", help="write every figure to FILE")
    claims.add_argument(
        "--report", type=_output, metavar="FILE.md|.html|.docx",
        help="write a report with figures (needs llmds_nb[report])",
    )  # fmt: skip

    warmup = commands.add_parser("warmup", help="compile all kernels into the disk cache")
    warmup.set_defaults(run=_warmup)
    warmup.add_argument("structures", nargs="*", metavar="STRUCTURE", help="default: all")

    info = commands.add_parser("info", help="versions, kernel cache, what a saved file is")
    info.set_defaults(run=_info)
    info.add_argument("file", nargs="?", metavar="FILE")
    return parser


def _add_replay(commands):
    replay = commands.add_parser(
        "replay", help="replay a request trace over the real structures, on a virtual clock",
        description="Traces: Mooncake JSONL, Azure LLM inference CSV, or the JSONL of `workload`, "
        "gzipped or not.",
    )  # fmt: skip
    replay.set_defaults(run=_replay)
    replay.add_argument("trace", metavar="TRACE")
    replay.add_argument(
        "--cache-only", action="store_true", help="look prompts up one after the other, no engine"
    )
    replay.add_argument("--limit", type=_positive, metavar="N", help="read N requests only")
    for name, (kind, default, text) in _REPLAY.items():
        choices = kind if isinstance(kind, tuple) else None
        replay.add_argument(
            f"--{name}", type=None if choices else kind, choices=choices, default=default,
            metavar=None if choices else "N",
            help=text if default is None else f"{text}, default {default}",
        )  # fmt: skip
    replay.add_argument(
        "--sweep", nargs="+", metavar="OPTION=A,B", help="replay with every combination of values"
    )
    replay.add_argument(
        "--jobs", type=_positive, default=os.cpu_count() or 1, metavar="N",
        help="processes of a sweep, default: one for each core",
    )  # fmt: skip
    replay.add_argument("--json", type=_output, metavar="FILE", help="write every figure to FILE")
    replay.add_argument(
        "--plot", type=_output, metavar="FILE.png", help="draw the result (needs llmds_nb[plot])"
    )


# ---- argument types -----------------------------------------------------------------------------


def _natural(text):
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, not {text!r}") from None
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must be in [0, 2**63 - 1], not {value}")
    return value


def _positive(text):
    value = _natural(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be at least 1, not 0")
    return value


def _page_size(text):
    value = _positive(text)
    if value & (value - 1) or value > 4096:
        raise argparse.ArgumentTypeError(f"must be a power of two up to 4096, not {value}")
    return value


def _real(text):
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, not {text}")
    return value


def _within(low, high):
    def convert(text):
        value = _real(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be in [{low:g}, {high:g}], not {text}")
        return value

    return convert


def _limited(most):
    def convert(text):
        value = _positive(text)
        if value > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}, not {value}")
        return value

    return convert


# What a replay can be told, and a sweep can go through: kind or choices, default, help.
_REPLAY = {
    "pages": (_limited(2**27), 10_000, "pages in all, shared out evenly among the replicas"),
    "page-size": (_page_size, 512, "tokens of a page"),
    "eviction": (("lru", "fifo", "lfu", "priority", "path-lrfu"), "lru", "policy of the cache"),
    "replicas": (_limited(4096), 1, "engines, each with its own cache"),
    "router": (("round-robin", "least-loaded", "prefix"), "prefix", "which replica gets a request"),
    "batching": (("continuous", "static"), "continuous", "batches that change every step, or run"),
    "policy": (("fcfs", "shortest", "slo", "aging", "fair"), "aging", "which request goes first"),
    "max-running": (_limited(2**20), 256, "requests of a batch"),
    "max-step-tokens": (_limited(2**26), 2048, "tokens of a step, continuous batches only"),
    "max-waiting": (_positive, 10_000, "requests that may wait; others are refused"),
    "qps": (_within(1e-6, 1e9), None, "limit on admitted requests per second"),
    "token-rate": (_within(1e-6, 1e9), None, "limit on admitted prompt tokens per second"),
    "speed": (_within(1e-6, 1e6), 1.0, "play the trace so many times faster"),
    "seed": (_natural, 0, "of the sampled tokens"),
    "step-ms": (_within(0, 1e6), 8.0, "a, ms of each step"),
    "prefill-ms": (_within(0, 1000), 0.02, "b, ms of each prefill token"),
    "decode-ms": (_within(0, 1000), 0.03, "c, ms of each decoding request"),
    "kv-ms": (_within(0, 1), 2e-5, "d, ms of each token of K/V read"),
}
_COSTS = {"step_ms": "base", "prefill_ms": "prefill_token", "decode_ms": "decoding",
          "kv_ms": "kv_token"}  # fmt: skip


def _axes(given):
    """The axes of a sweep: values of options, by name, converted as the options are."""
    axes = {}
    for axis in given:
        name, equals, values = axis.partition("=")
        if not equals or name not in _REPLAY or name.replace("-", "_") in _COSTS:
            known = ", ".join(key for key in _REPLAY if key.replace("-", "_") not in _COSTS)
            raise BadInput(f"--sweep {axis}: must be OPTION=VALUE,VALUE with OPTION of {known}")
        if name.replace("-", "_") in axes:
            raise BadInput(f"--sweep: {name} stands twice")
        kind, converted = _REPLAY[name][0], []
        for value in values.split(","):
            if isinstance(kind, tuple):
                if value not in kind:
                    raise BadInput(f"--sweep {name}: {value!r} is none of {', '.join(kind)}")
                converted.append(value)
                continue
            try:
                converted.append(kind(value))
            except argparse.ArgumentTypeError as error:
                raise BadInput(f"--sweep {name}: {error}") from None
        axes[name.replace("-", "_")] = list(dict.fromkeys(converted))
    return axes


def _output(text):
    """A file that can be written, found out before the work and not after it."""
    path = Path(text)
    folder = path.parent
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder")
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {folder}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written")
    return path


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
        _write(arguments.json, json.dumps(result, indent=2, sort_keys=True, allow_nan=False) + "\n")
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
    from .replay import replay, report as replay_report, sweep, traces
    from .replay.engine import StepCost

    axes = _axes(arguments.sweep) if arguments.sweep else None
    if arguments.plot:
        plots.require_matplotlib()
        from .replay import capacity, plots as replay_plots
    progress = Progress.on_stderr()
    chosen = {name.replace("-", "_"): getattr(arguments, name.replace("-", "_"))
              for name in _REPLAY}  # fmt: skip
    cost = StepCost(**{field: chosen.pop(name) for name, field in _COSTS.items()})
    options = replay.Options(cache_only=arguments.cache_only, cost=cost, **chosen)
    if axes:
        result = sweep.run(
            arguments.trace, arguments.limit, options, axes, arguments.jobs, progress
        )
        text, draw = replay_report.sweep_table(result), "draw_sweep"
    else:
        with progress.stage("read"):
            trace = traces.read(arguments.trace, limit=arguments.limit)
        with progress.stage("replay", len(trace), "requests") as done:
            result = replay.run(trace, options, done)
        result["conditions"]["trace"] = Path(arguments.trace).name
        if arguments.plot:
            result["curve"] = capacity.around(trace, options, progress)
        text, draw = replay_report.table(result), "draw_replay"
    if arguments.json:
        _write(arguments.json, replay_report.to_json(result))
    if arguments.plot:
        getattr(replay_plots, draw)(result, arguments.plot)
    print(text)
    return 0


def _workload(arguments):
    from .progress import Progress
    from .replay import workload as generate

    options = generate.Options(
        **{name: getattr(arguments, name) for name in generate.Options._fields}
    )
    try:
        with Progress.on_stderr().stage("write", options.requests, "requests") as done:
            n_tokens = generate.write(options, arguments.out, done)
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
    smaller = 10 if arguments.quick else 1
    result = claims.run(Progress.on_stderr(), seed=arguments.seed, smaller=smaller)
    if arguments.json:
        _write(arguments.json, json.dumps(result, indent=2, sort_keys=True, allow_nan=False) + "\n")
    if arguments.report:
        paper.write(claims_report.paper(result), arguments.report)
    print(claims.table(result))
    failed = [claim["name"] for claim in result["claims"] if not claim["passed"]]
    for name in failed:
        print(f"llmds-nb: claim failed: {name}", file=sys.stderr)
    return 1 if failed else 0


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


if __name__ == "__main__":
    sys.exit(main())
