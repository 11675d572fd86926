"""Triton's kernels under its interpreter; importing this skips where that does not run."""

import os

import pytest

# Read when triton is imported, and when a kernel is defined: tests/conftest.py sets it first.
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("TRITON_INTERPRET is not 1", allow_module_level=True)
triton = pytest.importorskip("triton", reason="Triton is not installed (Linux on x86 only)")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from llmds_nb.integrations.transformers import triton_kernels  # noqa: E402


def _runs():
    """Whether the interpreter works with this NumPy: up to Triton 3.6, not with NumPy 2.4."""
    x = torch.zeros((1, 1, 16))
    pages = torch.zeros((1, 1, 1, 16))
    ints = [torch.tensor(v, dtype=torch.int32) for v in ([[0]], [1], [1], [0, 1])]
    try:
        triton_kernels.attend_rows(x, pages, pages, tuple(ints), x.clone(), n_tokens=1, scale=1.0)
    except triton.runtime.errors.InterpreterError as error:
        if "0-dimensional" not in str(error):
            raise
        return False
    return True


if not _runs():
    pytest.skip(
        f"Triton {triton.__version__}'s interpreter does not run with this NumPy: take Triton 3.9",
        allow_module_level=True,
    )
