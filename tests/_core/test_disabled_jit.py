"""With NUMBA_DISABLE_JIT=1, which no kernel can run under, every use says so."""

import os
import subprocess
import sys

from llmds_nb._core.warmup import structure_names

_USE_ALL = """
import llmds_nb
for name in llmds_nb.__all__:
    try:
        getattr(llmds_nb, name)
    except ImportError as error:
        assert isinstance(error, llmds_nb.LlmdsError)
        assert "Unset NUMBA_DISABLE_JIT" in str(error), str(error)
        print(name)
"""


def run(*arguments):
    command, environment = [sys.executable, *arguments], os.environ | {"NUMBA_DISABLE_JIT": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_every_structure_names_the_variable():
    done = run("-c", _USE_ALL)
    assert done.returncode == 0, done.stderr
    with_kernels = {*structure_names(), "warmup"} - {"TokenLRU"}
    assert with_kernels <= set(done.stdout.split())


def test_the_command_line_says_so_in_one_line():
    for arguments in (["info"], ["warmup"], ["replay", __file__]):
        done = run("-m", "llmds_nb", *arguments)
        assert done.returncode == 2 and done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith("llmds-nb: ") and "NUMBA_DISABLE_JIT" in line
