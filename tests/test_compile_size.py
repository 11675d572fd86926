"""Compile time cannot creep back: what LLVM compiles for a structure stays as in a table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core import config

from .compile_size import TABLE, versions

ROOT = Path(__file__).parents[1]
GROWTH, SHRINKAGE = 1.02, 0.90


def test_no_structure_compiles_more_than_the_table_says():
    table = json.loads(TABLE.read_text())
    if table["versions"] != versions():
        pytest.skip(f"the table is of {table['versions']}")
    if config.BOUNDSCHECK:
        pytest.skip("bounds checks add instructions")
    command = [sys.executable, "-m", "tests.compile_size"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    found = json.loads(result.stdout)["structures"]
    assert found.keys() == table["structures"].keys()
    for name, known in table["structures"].items():
        for what, count in known.items():
            now = found[name][what]
            said = f"{name}: {now} {what}, not {count}; see compile_size.py"
            assert now <= GROWTH * count, said
            assert now >= SHRINKAGE * count, f"{said} (fewer: let the table say so)"
