"""Keys and values to and from the pages of an attention layer."""

from typing import Any

import numpy as np
import numpy.typing as npt

from .._core.typing import ArrayLike, Float32s
from .._core.validation import FLOAT32, INT32, INT64, array_of, integer, shown
from .kernels import pages as kernels

Pages = npt.NDArray[Any]

_STORED = {"float32": np.float32, "float16": np.int16, "uint16": np.uint16, "bfloat16": np.uint16}


def plain(array: Any, name: str) -> npt.NDArray[Any]:
    """The array itself, of a subclass that only says where its memory is (a memmap) without it."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be an array, not {shown(array)}")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array")
    return np.asarray(array)


def stored(pages: Any, name: str, *, written: bool = False) -> Pages:
    """Pages as kernels take them, without a copy: float32, or int16 and uint16 for 16 bits."""
    pages = plain(pages, name)
    kind = _STORED.get(pages.dtype.name)
    if kind is None or not pages.dtype.isnative:
        raise TypeError(
            f"{name} must be float32, float16, or bfloat16 (its bits as uint16), not {pages.dtype}"
        )
    if pages.ndim != 4 or 0 in pages.shape[1:]:
        raise ValueError(
            f"{name} must have shape [n_pages, n_kv_heads, page_size, width], "
            f"not {list(pages.shape)}"
        )
    if not pages.flags.c_contiguous or not pages.flags.aligned:
        raise ValueError(f"{name} must be C-contiguous and aligned: pages are used in place")
    if written and not pages.flags.writeable:
        raise ValueError(f"{name} must not be read-only")
    return pages.view(kind)


def pair(k_pages: Any, v_pages: Any, *, written: bool = False) -> tuple[Pages, Pages]:
    """The pages of keys and of values as kernels take them; ValueError unless they fit together."""
    keys = stored(k_pages, "k_pages", written=written)
    values = stored(v_pages, "v_pages", written=written)
    if keys.dtype != values.dtype:
        raise TypeError(f"v_pages must be {k_pages.dtype} as k_pages are, not {v_pages.dtype}")
    if keys.shape[:3] != values.shape[:3]:
        raise ValueError(
            f"k_pages and v_pages must agree in all but their last lengths, "
            f"not be {list(keys.shape)} and {list(values.shape)}"
        )
    return keys, values


def rows_of(rows: Any, name: str) -> Float32s:
    """float32[., ., .] as they are."""
    rows = plain(rows, name)
    if rows.dtype != FLOAT32:
        raise TypeError(f"{name} must be float32, not {rows.dtype}")
    if rows.ndim != 3:
        raise ValueError(f"{name} must have shape [tokens, heads, width], not {list(rows.shape)}")
    return rows


def ordered(rows: Float32s) -> tuple[Float32s, bool]:
    """[T, H, D] for a kernel, C-contiguous, and whether as [H, T, D]; a copy if neither."""
    if rows.flags.carray:
        return rows, False
    turned = rows.transpose(1, 0, 2)
    if turned.flags.carray:
        return turned, True
    return rows.copy(order="C"), False


def write_pages(k_pages: Pages, v_pages: Pages, k: Float32s, v: Float32s, slots: ArrayLike) -> None:
    """Store the keys and values of tokens in their slots.

    Parameters
    ----------
    k_pages : float32, float16 or uint16[n_pages, n_kv_heads, page_size, D]
        Pages of keys, C-contiguous, written in place. uint16 are the bits of bfloat16.
    v_pages : the same dtype, [n_pages, n_kv_heads, page_size, Dv]
        Pages of values.
    k, v : float32[T, n_kv_heads, D] and float32[T, n_kv_heads, Dv]
        Rounded to the stored dtype, to the nearest and of two as near to the even one; beyond the
        largest number of the dtype to infinity. Any strides; [T, n_kv_heads, D] and a transposed
        [n_kv_heads, T, D] are read where they are, others copied, as are parts of the pages.
    slots : int[T]
        page * page_size + the place in the page, in [0, n_pages * page_size); `StepPlan.slots`. Of
        equal ones the last counts.

    Raises
    ------
    TypeError
        A wrong dtype.
    ValueError
        A shape that does not fit, or a slot out of range; nothing is written.

    Notes
    -----
    O(T n_kv_heads (D + Dv)).

    >>> import numpy as np
    >>> k_pages, v_pages = np.zeros((2, 4, 1, 16, 8), np.float16)
    >>> rows = np.ones((3, 1, 8), np.float32)
    >>> write_pages(k_pages, v_pages, rows, 2 * rows, [0, 1, 17])
    >>> v_pages[1, 0, :3, 0]
    array([0., 2., 0.], dtype=float16)
    """
    pages = pair(k_pages, v_pages, written=True)
    n_pages, n_heads, page_size, _ = pages[0].shape
    slots = np.atleast_1d(array_of(slots, "slots"))
    if slots.size == 0:
        slots = slots.astype(INT64)
    if slots.dtype.kind not in "iu":
        raise TypeError(f"slots must be integers, not {slots.dtype}")
    if slots.ndim != 1:
        raise ValueError(f"slots must be one-dimensional, not of shape {list(slots.shape)}")
    both = []
    for name, rows, own in (("k", k, pages[0]), ("v", v, pages[1])):
        wanted = slots.size, n_heads, own.shape[3]
        if (rows := rows_of(rows, name)).shape != wanted:
            raise ValueError(f"{name} must have shape {list(wanted)}, not {list(rows.shape)}")
        overlaps = any(np.may_share_memory(rows, each) for each in pages)
        both.append(rows.copy() if overlaps else rows)
    if slots.size:
        least, most = slots.min(), slots.max()
        if least < 0 or most >= n_pages * page_size:
            raise ValueError(
                f"slots must be in [0, {n_pages * page_size}) ({n_pages} pages of {page_size}), "
                f"not {least if least < 0 else most}"
            )
    kept = slots.dtype if slots.dtype in (INT32, INT64) else INT64
    write_pages_unchecked(*pages, both[0], both[1], np.require(slots, kept, ("C", "A", "W")))


def write_pages_unchecked(
    k_pages: Pages, v_pages: Pages, k: Float32s, v: Float32s, slots: npt.NDArray[Any]
) -> None:
    """`write_pages` for an engine's own arrays: nothing is checked.

    Parameters
    ----------
    k_pages, v_pages : float32, int16 (the bits of float16) or uint16 (of bfloat16)
        C-contiguous, aligned and writable.
    k, v : float32
        As in `write_pages`.
    slots : int32[T] or int64[T]
        C-contiguous and writable. A slot out of range writes outside of the pages.
    """
    for pages, rows in ((k_pages, k), (v_pages, v)):
        kernels.pages_write(pages, *ordered(rows), slots)


def gather_pages(
    pages: Pages, block_row: ArrayLike, kv_len: int, out: Float32s | None = None
) -> Float32s:
    """Copy the keys, or values, of one sequence out of its pages.

    Parameters
    ----------
    pages : float32, float16 or uint16[n_pages, n_kv_heads, page_size, D]
        As in `write_pages`.
    block_row : int[W]
        The sequence's pages in order: a row of a block table.
    kv_len : int
        How many tokens, at most W * page_size.
    out : float32[n_kv_heads, kv_len, D], optional
        Written to, C-contiguous; made if it is not given.

    Returns
    -------
    float32[n_kv_heads, kv_len, D]
        As torch's `scaled_dot_product_attention` takes them.

    Raises
    ------
    TypeError
        A wrong dtype.
    ValueError
        A page, a length or a shape out of range; nothing is written.

    Notes
    -----
    O(kv_len n_kv_heads D).

    >>> import numpy as np
    >>> pages = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)
    >>> gather_pages(pages, [1, 0], 3)
    array([[[4., 5.],
            [6., 7.],
            [0., 1.]]], dtype=float32)
    """
    own = stored(pages, "pages")
    n_pages, n_heads, page_size, width = own.shape
    table = array_of(block_row, "block_row")
    if table.size == 0:
        table = table.astype(INT32)
    if table.ndim != 1 or table.dtype.kind not in "iu":
        raise TypeError(f"block_row must be integers [W], not {shown(block_row)}")
    kv_len = integer(kv_len, "kv_len", low=0, high=table.size * page_size)
    used = table[: -(-kv_len // page_size)]
    check_pages(used, n_pages)
    if out is None:
        out = np.empty((n_heads, kv_len, width), np.float32)
    check_out(out, (n_heads, kv_len, width), own)
    used = np.require(used, np.int32, ("C", "A", "W"))
    kernels.pages_gather(writable(own), used, kv_len, np.asarray(out))
    return out


def writable(pages: Pages) -> Pages:
    """The pages under the one type that kernels take, which only read them."""
    if pages.flags.writeable:
        return pages
    raise ValueError("pages must not be read-only: kernels are compiled for writable ones")


def check_pages(used: npt.NDArray[Any], n_pages: int) -> None:
    """Refuse page numbers out of range."""
    if used.size:
        least, most = used.min(), used.max()
        if least < 0 or most >= n_pages:
            raise ValueError(
                f"pages of block tables must be in [0, {n_pages}), "
                f"not {least if least < 0 else most}"
            )


def check_out(out: Any, shape: tuple[int, ...], *inputs: np.ndarray) -> None:
    """Refuse an `out` of another kind or shape, or one that overlaps what is read."""
    out = plain(out, "out")
    if out.dtype != FLOAT32 or not out.flags.carray:
        raise TypeError(f"out must be a writable C-contiguous float32 array, not {shown(out)}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {list(shape)}, not {list(out.shape)}")
    if any(np.may_share_memory(out, each) for each in inputs):
        raise ValueError("out must not overlap the arrays that are read")
