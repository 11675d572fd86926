"""PagedRows: the rows of one call of `generate` over the pages of a SlotPool."""

from typing import Any

import numpy as np
import torch
import transformers
from transformers.cache_utils import Cache

from llmds_nb._core.signals import uninterrupted

from .row_layers import PagedLayer, Step, places
from .slot_pool import SlotPool

_LEGACY_CROP = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 18)
_SAME = 0.05  # relative distance of two computations of one key, which differ by rounding


class PagedRows(Cache):
    """What `generate` takes as its cache, over pages that other calls share.

    Parameters
    ----------
    pool : SlotPool

    Notes
    -----
    A row is a sequence of the pool's KVCache, without its padding on the left. Whole pages found
    there are read only; behind them slots are reserved as the model needs them, and get their
    tokens at the end, when they are known, so that an error in between can publish nothing wrong.
    """

    def __init__(self, pool: SlotPool) -> None:
        self.pool = pool
        self._prompts = np.empty((0, 0), np.int32)
        self._closed = self._told = False
        self._ids: list[int] = []  # this one list, which the pool has, too
        pool.watch(self, self._ids)
        self._clear()
        self._layers = [PagedLayer(self, i) for i in range(len(pool.layers))]
        super().__init__(layers=list(self._layers))

    def _clear(self) -> None:
        self._ids.clear()
        self._pads = np.empty(0, np.int64)  # columns of padding before each row
        self._hits = np.empty(0, np.int64)  # tokens of each row in pages that others may read
        self._source = np.empty(0, np.int64)  # the prompt that each row continues
        self._step: Step | None = None
        self._trusted = 0  # columns of the prompts that are as they were told
        self._skips = self._moved = self._spoiled = self._assisted = False

    # ---- the beginning ---------------------------------------------------------------------

    def tell(self, prompts: np.ndarray, pads: np.ndarray, salt: Any) -> int:
        """Take rows of tokens int32[B, T], pads int64[B] of them padding; return columns reused."""
        kv, n = self.pool.kv, prompts.shape[1]
        self.pool.collect()
        self._prompts, self._told, self._trusted = prompts, True, n
        first: dict[bytes, int] = {}
        texts = [row[pad:].tobytes() for row, pad in zip(prompts, pads, strict=True)]
        self._source = np.array([first.setdefault(t, r) for r, t in enumerate(texts)], np.int64)
        self._pads, hits = pads, []
        with self.pool.lock:
            for row, pad in zip(prompts, pads, strict=True):
                self._ids.append(self.pool.new_id())
                hits.append(kv.attach(self._ids[-1], row[pad:], salt=salt))
                kv.truncate(self._ids[-1], hits[-1])
        self._hits = np.array(hits, np.int64)
        # The last column that all rows have is computed again, to see that the model is the same.
        common = max(int((self._pads + self._hits).min()) - 1, 0) if any(hits) else 0
        self._set_length(min(common, n - 1))
        return min(common, n - 1)

    def skip_in_forward(self) -> None:
        """Let the first forward pass of assisted decoding get only columns that are not cached."""
        self._skips = True

    @property
    def is_assisted(self) -> bool:
        """Whether assisted decoding has begun."""
        return self._assisted

    def activate_past_recording(self) -> None:
        """Told by assisted decoding, whose first forward pass is given every column."""
        if not self._assisted and self._step is None and not self._skips:
            self.start_over()
        self._assisted = True

    def start_over(self) -> None:
        """Have every column computed, though pages that are cached are read."""
        self._set_length(0)

    def _set_length(self, n: int) -> None:
        for layer in self._layers:
            layer.length = n

    # ---- a forward pass --------------------------------------------------------------------

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Write the new tokens' keys and values of a layer; return those of all tokens."""
        n = len(self._layers)
        if not 0 <= layer_idx < n:
            raise ValueError(f"layer {layer_idx} of a model whose config has {n} layers")
        return self.write_and_read(self._layers[layer_idx], key_states, value_states)

    def write_and_read(
        self, layer: PagedLayer, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`PagedLayer.update`. One gather of keys and one of values, by whole pages if unpadded."""
        if self._closed:
            raise RuntimeError("this generation has ended: begin another with `generating`")
        if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
            raise RuntimeError("a PagedCache keeps no gradients: call the model in torch.no_grad()")
        both = self.pool.pages_of(layer.index, key, value)
        layer.is_initialized = True
        batch, _, n, _ = key.shape
        start, stop = layer.length, layer.length + n
        step = self._step
        if step is None or (step.start, step.stop) != (start, stop) or batch != len(self._ids):
            first = step is None
            step = self._plan(batch, start, stop)
            if first and self._hits.any():
                self._check_model(both[0], key, step)
            self._step = step
        for pages, states in zip(both, (key, value), strict=True):
            step.write(pages, states)
        layer.length = stop
        return step.read(both[0]), step.read(both[1])

    def _plan(self, batch: int, start: int, stop: int) -> Step:
        if not self._ids:
            self._begin_unknown(batch)
        elif batch != len(self._ids):
            if self._step is not None or batch % len(self._ids):
                raise ValueError(f"{batch} rows of keys for a cache of {len(self._ids)} rows")
            self._take(np.repeat(np.arange(len(self._ids)), batch // len(self._ids)))
        if self._told and not self._assisted and start < self._trusted < stop:
            self._spoiled = True
            raise ValueError(
                f"the forward pass computes columns {start} to {stop}, but the prompt that "
                f"`generating` was given ends at {self._trusted}; transformers before 5.24 may "
                f"not continue a prefix with prefill_chunk_size"
            )
        kv, pool, pads = self.pool.kv, self.pool, self._pads
        lengths = np.maximum(stop - pads, 0)
        with pool.lock:
            self._grow(lengths)
            ids = np.array(self._ids)
            if pads.any():
                table: Any = np.full((batch, stop), pool.zero, np.int64)
                has_token = np.arange(stop) >= pads[:, None]
                table[has_token] = kv.slot_mapping(ids, 0, lengths)
                own = table[:, start:]
            else:
                own = kv.slot_mapping(ids, start, stop).reshape(batch, -1)
                table = kv.block_table(ids)[:, : -(-stop // kv.page_size)].astype(np.int64)
        kept = np.arange(start, stop) >= (pads + self._hits)[:, None]
        return Step(start, stop, own, np.where(kept, own, pool.unread), table, not pads.any())

    def _begin_unknown(self, batch: int) -> None:
        """Rows of which no token is known: nothing of them is ever published."""
        for _ in range(batch):
            self._ids.append(self.pool.new_id())
            self.pool.kv.attach(self._ids[-1], [])
        self._pads, self._hits = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        self._source = np.arange(batch)

    def _grow(self, lengths: np.ndarray) -> None:
        """Reserve slots up to these lengths for all rows, or for none."""
        kv, grown = self.pool.kv, []
        try:
            for id_, length in zip(self._ids, lengths.tolist(), strict=True):
                has = kv.length(id_)
                if length > has:
                    grown.append((id_, has))
                    kv.reserve(id_, length - has)
        except BaseException:
            for id_, has in grown:
                kv.truncate(id_, has)
            raise
        finally:
            self.pool.settle()

    def _check_model(self, pages: torch.Tensor, key: torch.Tensor, step: Step) -> None:
        """A key of the first layer depends on its token, its position and the model alone."""
        known = (self._pads <= step.start) & (step.start < self._pads + self._hits)
        rows = np.flatnonzero(known)
        if not len(rows):
            return
        heads, size, width = pages.shape[1:]
        where = places(step.own[rows, :1], heads, size).reshape(-1)
        old = pages.view(-1, width)[torch.from_numpy(where).to(pages.device)]
        old = old.view(len(rows), -1).float()
        new = key[torch.from_numpy(rows).to(key.device), :, 0].float().flatten(1)
        if not bool(((new - old).norm(dim=1) <= _SAME * old.norm(dim=1)).all()):
            self._spoiled = True
            raise ValueError(
                "the model computes another key for a token than the one that is cached: the "
                "PagedCache belongs to another model, to other weights (call reset()), or to other "
                "inputs or positions for these token ids (use another salt)"
            )

    # ---- what generate() asks for ----------------------------------------------------------

    def _take(self, rows: np.ndarray) -> None:
        """Let row i continue row rows[i]."""
        kv, old = self.pool.kv, np.array(self._ids, np.int64)
        if len(rows) and (rows.min() < -len(old) or rows.max() >= len(old)):
            raise IndexError(f"rows {rows.tolist()} of a cache of {len(old)} rows")
        with self.pool.lock:
            if len(rows) == len(old):
                kv.reorder(old, old[rows])
            else:
                for parent in old[rows].tolist():
                    self._ids.append(self.pool.new_id())
                    kv.fork(parent, self._ids[-1])
                kv.detach(old)
                del self._ids[: len(old)]
        self._pads, self._hits = self._pads[rows], self._hits[rows]
        self._source = self._source[rows]
        if self._step is not None:
            self._step.start = -1  # no forward pass has these slots any more

    def _move(self, rows: np.ndarray) -> None:
        if self._ids:
            self._moved = True
            self._take(rows)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let row i continue row beam_idx[i]. O(pages)."""
        self._move(np.asarray(beam_idx.cpu(), np.int64))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows only. O(pages)."""
        self._move(np.arange(len(self._ids))[np.asarray(torch.as_tensor(indices).cpu())])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Let `repeats` rows continue each row. O(pages)."""
        self._move(np.repeat(np.arange(len(self._ids)), repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last ``-tokens_to_remove`` columns; 0 does nothing. O(pages dropped).

        More than 0 is the number of columns to keep in transformers 5.17, and an error later, as it
        is for a DynamicCache.
        """
        n, length = int(tokens_to_remove), self.get_seq_length()
        if n > 0 and not _LEGACY_CROP:
            raise ValueError(f"crop({n}): give the number of tokens to remove as a negative number")
        left = min(n, length) if n > 0 else max(length + n, 0)
        if left == length:
            return
        with self.pool.lock:
            for id_, pad in zip(self._ids, self._pads.tolist(), strict=True):
                if self.pool.kv.length(id_) > max(left - pad, 0):
                    self.pool.kv.truncate(id_, max(left - pad, 0))
        self._hits = np.minimum(self._hits, np.maximum(left - self._pads, 0))
        self._trusted = min(self._trusted, left)
        self._set_length(left)
        if self._step is not None:
            self._step.start = -1

    def reset(self) -> None:
        """Drop the rows."""
        self.drop()

    # ---- the end ---------------------------------------------------------------------------

    def done(self, output: Any, *, eos_token_id: Any = None) -> Any:
        """End the generation, and let later calls find its prompt and what was generated.

        Parameters
        ----------
        output : Tensor [rows, columns] or what `generate` returned
            Its sequences, prompts included. After beam search only the prompts are kept, since the
            beams that were computed last are not those that are returned.
        eos_token_id : int, list or tensor, optional
            What ended a row: the padding behind it is not kept.

        Returns
        -------
        `output`, as it was given.

        Raises
        ------
        ValueError
            It does not begin with the prompts; nothing is published then.
        """
        if self._closed or not self._told:
            raise RuntimeError("done() ends a generation begun with `generating`, once")
        sequences = getattr(output, "sequences", output)
        rows = np.asarray(sequences.cpu() if torch.is_tensor(sequences) else sequences)
        n = self._prompts.shape[1]
        if not self._moved:
            fits = rows.ndim == 2 and len(rows) == len(self._ids) and rows.shape[1] >= n
            if not fits or (rows[:, :n] != self._prompts[self._source]).any():
                self._spoiled = True
                raise ValueError(
                    f"the output {list(rows.shape)} does not begin with the prompts "
                    f"{list(self._prompts.shape)} of the {len(self._ids)} rows"
                )
        self.end(None if self._moved else rows, eos_token_id)
        return output

    def end(self, sequences: np.ndarray | None = None, eos_token_id: Any = None) -> None:
        """Publish what is computed and known, and let the pages go."""
        if self._closed:
            return
        try:
            self._closed = True
            if self._told and not self._spoiled and self._step is not None:
                self._publish(sequences, eos_token_id)
        finally:
            uninterrupted(self.drop)

    def _publish(self, sequences: np.ndarray | None, eos_token_id: Any) -> None:
        kv = self.pool.kv
        computed = min(layer.length for layer in self._layers)
        if sequences is None:
            tokens, stop = self._prompts[self._source], min(computed, self._trusted)
            _, rows = np.unique(self._source, return_index=True)
            kept = set(rows.tolist())
            for row, id_ in enumerate(self._ids):  # so that no page is shared for no use
                if row not in kept:
                    kv.detach(id_)
        else:
            tokens, stop = sequences, min(computed, sequences.shape[1])
            rows = np.arange(len(self._ids))
        stops = np.full(len(self._ids), stop)
        if sequences is not None and eos_token_id is not None:
            n = self._prompts.shape[1]
            ended = np.isin(sequences[:, n:stop], np.asarray(eos_token_id))
            ended = np.concatenate([ended, np.ones((len(ended), 1), bool)], 1)
            stops = np.minimum(n + ended.argmax(1) + 1, stop)
        with self.pool.lock:
            for row in rows.tolist():
                pad, hit, stop = int(self._pads[row]), int(self._hits[row]), int(stops[row])
                if stop - pad > hit:
                    kv.set_tokens(self._ids[row], hit, tokens[row, pad + hit : stop])
                    kv.commit(self._ids[row], stop - pad)
            self.pool.settle()

    def drop(self) -> None:
        """Let all pages of the rows go."""
        kv = self.pool.kv
        for id_ in self._ids:
            if id_ in kv:
                kv.detach(id_)
        self._clear()
        self._set_length(0)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled: its keys and values belong to "
            f"a model in this process"
        )
