"""The exceptions of llmds_nb, beside Python's ValueError, TypeError and KeyError."""

__all__ = ["CapacityError", "CorruptFileError", "LlmdsError"]


class LlmdsError(Exception):
    """Parent of every exception that only llmds_nb raises."""


class CapacityError(LlmdsError):
    """No capacity is left (pages, sequences, quota); the call has changed nothing.

    Of a KVCache the text may be shown to the tenant whose call it was: it tells nothing of others.
    `missing` is for the operator: how many pages lack, None where it is not about pages.
    """

    missing: int | None = None


class CorruptFileError(LlmdsError, ValueError):
    """A file was refused: not ours, truncated, altered, or of a format version we do not read."""


class InterpreterError(LlmdsError, ImportError):
    """A sub-interpreter of Python, which NumPy and Numba do not support."""


class JitDisabledError(LlmdsError, ImportError):
    """Numba is told not to compile, by NUMBA_DISABLE_JIT=1: the kernels do not run as Python."""
