"""The command line: `llmds-nb`, `python -m llmds_nb`.

Exit codes: 0 done; 1 a check of the demo failed; 2 bad input, with one line on stderr.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from . import __version__
from .serving.errors import BadInput


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
        epilog="Exit codes: 0 done, 1 a check failed, 2 bad input.",
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

    warmup = commands.add_parser("warmup", help="compile all kernels into the disk cache")
    warmup.set_defaults(run=_warmup)
    warmup.add_argument("structures", nargs="*", metavar="STRUCTURE", help="default: all")

    info = commands.add_parser("info", help="versions, kernel cache, what a saved file is")
    info.set_defaults(run=_info)
    info.add_argument("file", nargs="?", metavar="FILE")
    return parser


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
    from .serving import demo, report
    from .serving.progress import Progress

    if arguments.plot:
        from .serving import plots

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


def _write(path, content):
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None


def _index(arguments):
    from .serving import index
    from .serving.progress import Progress

    progress = Progress.on_stderr()
    n_documents, n_bytes = index.build(
        arguments.path, arguments.out, progress, strict=arguments.strict
    )
    print(f"{arguments.out}: {n_documents:,} documents, {n_bytes:,} bytes")
    return 0


def _search(arguments):
    from .serving import index

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

    from . import warmup

    start = time.perf_counter()
    try:
        names = warmup(arguments.structures or None, progress=sys.stderr.isatty())
    except ValueError as error:
        raise BadInput(str(error)) from None
    print(f"{len(names)} structures compiled in {time.perf_counter() - start:.1f} s")
    return 0


def _info(arguments):
    from .serving import info

    for name, value in info.describe(arguments.file):
        print(f"{name:<14} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
