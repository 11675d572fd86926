"""Whether the tests notice a wrong line of a kernel: for development, no part of CI.

`python -m tests.mutate` breaks the lines of `tests/mutations.toml` one by one, in a copy of the
tree, and runs the tests that must notice. A mutation is killed where one of them fails, crashes, or
does not end in time; the others survive, and then the exit status is 1.

After a change of a line only its domain's kernels are compiled again, and `--folder` keeps what is
compiled without one for the next run.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).parent / "mutations.toml"
COPIED = "llmds_nb", "tests", "README.md", "pyproject.toml"
_NOT_COPIED = shutil.ignore_patterns("__pycache__", ".hypothesis", ".pytest_cache")
# What Numba and Python raise for a mutation that is no program: such a kill would mean nothing.
_NO_PROGRAM = re.compile(r"^E +.*(TypingError|LoweringError|SyntaxError|NameError)", re.M)
_STARTED = re.compile(r"^(tests/\S+?::\w+(?:::\w+)*(?:\[.+?\](?= |$))?)", re.M)


class Mutation(NamedTuple):
    """A line of a kernel, and what it is replaced by."""

    file: str
    name: str
    line: str  # stripped; occurs once in the file
    becomes: str
    tests: tuple[str, ...]  # the files that must notice, the fastest first

    @property
    def domain(self) -> str:
        """The folder of the package whose kernels are compiled again."""
        return self.file.split("/")[1]


class Outcome(NamedTuple):
    """What became of a mutation."""

    file: str
    name: str
    result: str  # killed or survived
    how: str  # the test that failed, or was running
    seconds: float


def all_mutations() -> list[Mutation]:
    """The mutations of the table."""
    rows = tomllib.loads(TABLE.read_text())["mutation"]
    return [Mutation(**row | {"tests": tuple(row["tests"])}) for row in rows]


def mutated(mutation: Mutation, text: str) -> str:
    """The text of a file with the one line replaced, at the same indentation."""
    lines = text.splitlines(keepends=True)
    found = [i for i, line in enumerate(lines) if line.strip() == mutation.line]
    if len(found) != 1:
        raise ValueError(f"{mutation.file} has {len(found)} lines `{mutation.line}`, not one")
    lines[found[0]] = lines[found[0]].replace(mutation.line, mutation.becomes)
    return "".join(lines)


def _run_tests(tree, tests, timeout, *options):
    """(exit status or None for a time-out, output) of pytest in a tree."""
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",  # files of one size and second would pass for one another
        "NUMBA_CACHE_DIR": str(tree.parent / "cache"),
        "HYPOTHESIS_PROFILE": "mutate",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # 3 s of CPU time each: those of integrations
        "LLMDS_DATA": os.environ.get("LLMDS_DATA", str(ROOT.parent / "shared" / "data")),
    }
    plugins = [
        "-p",
        "no:cacheprovider",
        "-p",
        "pytest_asyncio.plugin",
    ]  # which pyproject.toml names
    command = [sys.executable, "-m", "pytest", "-v", *plugins, *options, *tests]
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command, cwd=tree, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # with all that the tests started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return status, output.read()


def _check_unchanged(tree, mutations):
    """Compile the kernels, and see that the tests pass without a mutation."""
    tests = sorted({path for mutation in mutations for path in mutation.tests})
    status, output = _run_tests(tree, tests, None)
    if status != 0:
        raise RuntimeError(f"the tests fail without a mutation:\n{output[-5000:]}")


def check(tree: Path, mutation: Mutation, timeout: float) -> Outcome:
    """Break one line of a tree, run its tests, and mend the line."""
    file = tree / mutation.file
    text = file.read_text()
    start = time.perf_counter()
    try:
        file.write_text(mutated(mutation, text))
        status, output = _run_tests(tree, mutation.tests, timeout, "-x")
    finally:
        file.write_text(text)
    if status and (wrong := _NO_PROGRAM.search(output)):
        raise RuntimeError(f"{mutation.name} is no program: {wrong[0]}")
    if status is not None and status > 1:
        raise RuntimeError(f"pytest ends with {status} for {mutation.name}:\n{output[-5000:]}")
    started = _STARTED.findall(output)
    how = started[-1] if started else "before the first test"
    if status is None:
        how += f" (still running after {timeout} s)"
    elif status < 0:
        how += f" ({signal.Signals(-status).name})"
    seconds = round(time.perf_counter() - start, 1)
    if status == 0:
        return Outcome(mutation.file, mutation.name, "survived", "", seconds)
    return Outcome(mutation.file, mutation.name, "killed", how, seconds)


def check_all(mutations, folder, jobs, timeout):
    """Yield the outcomes in the order in which they are known.

    Each domain's mutations are checked one after the other, `jobs` domains at once.
    """
    domains = [list(group) for _, group in groupby(mutations, key=lambda mutation: mutation.domain)]
    trees = deque(folder / str(job) / "tree" for job in range(jobs))
    for tree in trees:
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(parents=True)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, tree / name, ignore=_NOT_COPIED)
            else:
                shutil.copy2(ROOT / name, tree / name)
    known: deque = deque()

    def check_domain(domain):
        tree = trees.popleft()
        try:
            _check_unchanged(tree, domain)
            for mutation in domain:
                known.append(check(tree, mutation, timeout))
        finally:
            trees.append(tree)

    with ThreadPoolExecutor(jobs) as pool:
        working = [pool.submit(check_domain, domain) for domain in domains]
        while working or known:
            while known:
                yield known.popleft()
            for done in [future for future in working if future.done()]:
                working.remove(done)
                done.result()
            time.sleep(0.1)


def main(arguments=None):
    """Check the mutations asked for; 1 if any survives."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__)
    parser.add_argument("--only", default="", metavar="REGEX", help="mutations by `file: name`")
    parser.add_argument("--jobs", type=int, default=1, help="domains checked at once")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for each mutation")
    parser.add_argument("--folder", type=Path, help="where copies and compiled kernels are kept")
    parser.add_argument("--json", type=Path, help="file to write the outcomes to")
    options = parser.parse_args(arguments)
    chosen = [m for m in all_mutations() if re.search(options.only, f"{m.file}: {m.name}")]
    outcomes = []
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bar = stack.enter_context(tqdm(total=len(chosen), unit="mutation"))
        for outcome in check_all(chosen, folder.resolve(), options.jobs, options.timeout):
            outcomes.append(outcome)
            tqdm.write("{2:8} {4:6} s  {0}: {1}  {3}".format(*outcome))
            bar.update()
    survivors = [outcome for outcome in outcomes if outcome.result == "survived"]
    tqdm.write(f"{len(outcomes)} mutations, {len(survivors)} survived")
    for outcome in survivors:
        tqdm.write(f"  {outcome.file}: {outcome.name}")
    if options.json:
        options.json.write_text(json.dumps([o._asdict() for o in outcomes], indent=1) + "\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
