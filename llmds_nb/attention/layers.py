"""What lies around the attention of a layer, each in one pass: for an engine's own arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._core.forking import Workers
from .._core.typing import Float32s
from .kernels import layers as k, linear as products
from .kernels.simd import BLOCK
from .pages import Pages
from .tasks import run_all

_workers = Workers("llmds_nb-linear")
_MIN_WORK = 2**24  # multiplications of a product that are worth a thread of their own
_NONE = np.zeros(0, np.float32)


def takes_width(n: int) -> bool:
    """Whether `rms_norm_unchecked` and `silu_product_unchecked` take rows of n numbers.

    >>> takes_width(64), takes_width(65)
    (True, False)
    """
    return n % BLOCK == 0


def pack_weights(weights: Sequence[Float32s]) -> Float32s:
    """The weights of linear layers over the same input, in the order in which they are read.

    Parameters
    ----------
    weights : sequence of float32[n_i, K]
        C-contiguous and writable; copied.

    Returns
    -------
    float32[P, K, 32]
        As `linear_unchecked` takes them: 32 columns of the product at a time.

    >>> import numpy as np
    >>> pack_weights([np.ones((40, 3), np.float32)]).shape
    (2, 3, 32)
    """
    n = sum(len(weight) for weight in weights)
    panels = np.zeros((-(-n // products.WIDTH), weights[0].shape[1], products.WIDTH), np.float32)
    row = 0
    for weight in weights:
        products.pack(weight, row, panels)
        row += len(weight)
    return panels


def linear_unchecked(
    x: Float32s, panels: Float32s, bias: Float32s | None, n: int, threads: int = 1
) -> Float32s:
    """``x W^T + b``. Nothing is checked.

    Parameters
    ----------
    x : float32[M, K]
        C-contiguous and writable.
    panels : float32[P, K, 32]
        W, by `pack_weights`.
    bias : float32[n], optional
        b.
    n : int
        Rows of W.
    threads : int
        At most; a small product takes fewer.

    Returns
    -------
    float32[M, n]
        A row does not depend on the others, nor on the threads.

    >>> import numpy as np
    >>> x, weight = np.ones((1, 3), np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)
    >>> linear_unchecked(x, pack_weights([weight]), None, 2)
    array([[ 3., 12.]], dtype=float32)
    """
    out = np.empty((len(x), n), np.float32)
    bias = _NONE if bias is None else bias
    n_panels = len(panels)
    if threads > 1:
        threads = min(threads, n_panels, out.size * panels.shape[1] // _MIN_WORK)
    if threads <= 1:
        products.linear(x, panels, bias, (0, n_panels), out)
        return out

    def run(i):
        span = n_panels * i // threads, n_panels * (i + 1) // threads
        products.linear(x, panels, bias, span, out)

    run_all(_workers, run, threads)
    return out


def rms_norm_unchecked(x: Float32s, weight: Float32s, eps: float) -> Float32s:
    """Root mean square norm of each row (Zhang and Sennrich, 2019). Nothing is checked.

    Parameters
    ----------
    x : float32[T, n]
        C-contiguous and writable, as all arrays here; n one that `takes_width`.
    weight : float32[n]
    eps : float

    Returns
    -------
    float32[T, n]
        ``weight * x / sqrt(mean(x**2) + eps)``.

    >>> import numpy as np
    >>> rms_norm_unchecked(np.full((1, 32), 3, np.float32), np.ones(32, np.float32), 0.0)[0, :2]
    array([1., 1.], dtype=float32)
    """
    out = np.empty_like(x)
    k.rms_norm(x, weight, float(eps), out)
    return out


def silu_product_unchecked(x: Float32s) -> Float32s:
    """silu(gates) * values, of rows of gates and then values (Shazeer, 2020). Nothing is checked.

    Parameters
    ----------
    x : float32[T, 2 n]
        C-contiguous and writable; n one that `takes_width`.

    Returns
    -------
    float32[T, n]

    >>> import numpy as np
    >>> silu_product_unchecked(np.ones((1, 64), np.float32))[0, :2].round(4)
    array([0.7311, 0.7311], dtype=float32)
    """
    out = np.empty((x.shape[0], x.shape[1] // 2), np.float32)
    k.silu_product(x, out)
    return out


def rotate_write_unchecked(
    qkv: Float32s, rotation: Any, k_pages: Pages, v_pages: Pages, slots: npt.NDArray[np.int32],
    n_heads: int,
) -> Float32s:  # fmt: skip
    """Rotate queries and keys by their positions and store the keys and values. Nothing is checked.

    Parameters
    ----------
    qkv : float32[T, (n_heads + n_kv_heads) D + n_kv_heads Dv]
        Queries, keys and values, head by head.
    rotation : tuple
        (cos float32[T, D], sin float32[T, D], q_norm, k_norm, eps): of a rotary embedding whose
        pairs are the halves of a head (Su et al., RoFormer, 2021); the norms are the weights
        float32[D] of a root mean square norm of each head before it, or None.
    k_pages, v_pages : float32, int16 (the bits of float16) or uint16 (of bfloat16)
        [n_pages, n_kv_heads, page_size, D or Dv].
    slots : int32[T]
        Of the keys and values. A slot out of range writes outside of the pages.
    n_heads : int
        Query heads.

    Returns
    -------
    float32[T, n_heads, D]
        The queries, as `paged_attention` takes them.

    >>> import numpy as np
    >>> pages = np.zeros((2, 1, 1, 4, 2), np.float32)
    >>> turn = np.array([[0.0, 0.0]], np.float32), np.array([[1.0, 1.0]], np.float32)
    >>> qkv = np.array([[1, 2, 3, 4, 5, 6]], np.float32)
    >>> slots = np.array([3], np.int32)
    >>> rotate_write_unchecked(qkv, (*turn, None, None, 0.0), *pages, slots, 1)
    array([[[-2.,  1.]]], dtype=float32)
    >>> pages[:, 0, 0, 3]
    array([[-4.,  3.],
           [ 5.,  6.]], dtype=float32)
    """
    cos, sin, q_norm, k_norm, eps = rotation
    queries = np.empty((len(slots), n_heads, cos.shape[1]), np.float32)
    q_norm, k_norm = (_NONE if norm is None else norm for norm in (q_norm, k_norm))
    turn = k.Rotation(cos, sin, q_norm, k_norm, float(eps))
    k.rotate_write(qkv, turn, k_pages, v_pages, slots, queries)
    return queries


def warmup() -> None:
    """Compile, or load, the kernels for every dtype of pages.

    >>> warmup()
    """
    rows = np.ones((1, 2 * BLOCK), np.float32)
    rms_norm_unchecked(rows, rows[0], 0.0)
    linear_unchecked(rows, pack_weights([rows]), None, 1)
    silu_product_unchecked(rows)
    turn = (np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), None, None, 0.0)
    for dtype in (np.float32, np.int16, np.uint16):
        k_pages, v_pages = np.zeros((2, 1, 1, 1, 2), dtype)
        qkv = np.ones((1, 6), np.float32)
        rotate_write_unchecked(qkv, turn, k_pages, v_pages, np.zeros(1, np.int32), 1)
