"""Baseline of bench_kv_cache: a paged KV manager of dicts, a deque and an OrderedDict.

What an engine in plain Python does (nano-vllm's block manager is of this kind): full pages are
found by a chained hash of their tokens and compared token by token, evicted in LRU order. Forks,
copies on write, tenants, pins and policies are left out.
"""

from collections import OrderedDict, deque

import numpy as np


class _Sequence:
    __slots__ = ("key", "n_hashed", "pages", "tokens")

    def __init__(self, tokens, pages, key):
        self.tokens, self.pages, self.key, self.n_hashed = tokens, pages, key, len(pages)


class PlainKV:
    """Sequences, pages and cached prefixes; tokens are lists of int."""

    def __init__(self, n_pages, page_size=512):
        self.page_size = page_size
        self.free = deque(range(n_pages))
        self.holders = [0] * n_pages
        self.cached = {}  # chained hash -> page
        self.content = {}  # cached page -> (chained hash, tokens)
        self.idle = OrderedDict()  # cached pages that nobody holds, the next to evict first
        self.sequences = {}

    def attach(self, seq_id, tokens):
        """Start a sequence; return how many of its tokens are cached."""
        if seq_id in self.sequences:
            raise ValueError(f"sequence {seq_id} is attached already")
        pages, key = self._walk(tokens)
        wanted = -(-len(tokens) // self.page_size) - len(pages)
        if wanted > len(self.free) + len(self.idle) - sum(page in self.idle for page in pages):
            raise MemoryError(f"{wanted} pages wanted")
        for page in pages:
            if not self.holders[page]:
                del self.idle[page]
            self.holders[page] += 1
        self.sequences[seq_id] = _Sequence(tokens.copy(), pages, key)
        n_cached = len(pages) * self.page_size
        for _ in range(wanted):
            pages.append(self._take())
        return n_cached

    def append_many(self, seq_ids, tokens):
        """Add one token to each sequence; return the slots page * page_size + offset."""
        size, sequences, slots = self.page_size, self.sequences, []
        for seq_id, token in zip(seq_ids, tokens, strict=True):
            seq = sequences[seq_id]
            offset = len(seq.tokens) % size
            if not offset:
                self.commit(seq_id, len(seq.tokens))
                seq.pages.append(self._take())
            seq.tokens.append(token)
            slots.append(seq.pages[-1] * size + offset)
        return slots

    def commit(self, seq_id, n_tokens):
        """Make the full pages among the first `n_tokens` findable."""
        seq, size = self.sequences[seq_id], self.page_size
        while (seq.n_hashed + 1) * size <= n_tokens:
            start = seq.n_hashed * size
            part = tuple(seq.tokens[start : start + size])
            seq.key = hash((seq.key, part))
            if seq.key not in self.cached:
                page = seq.pages[seq.n_hashed]
                self.cached[seq.key] = page
                self.content[page] = seq.key, part
            seq.n_hashed += 1

    def detach(self, seq_id):
        """End a sequence; its cached pages stay, the last one to be evicted first."""
        for page in reversed(self.sequences.pop(seq_id).pages):
            self.holders[page] -= 1
            if not self.holders[page]:
                if page in self.content:
                    self.idle[page] = None
                else:
                    self.free.append(page)

    def match(self, tokens):
        """How many tokens are cached."""
        return len(self._walk(tokens)[0]) * self.page_size

    def evict(self, n_pages):
        """Free up to `n_pages` cached pages, the least recently used ones."""
        n = min(n_pages, len(self.idle))
        for _ in range(n):
            self.free.append(self._evict_one())
        return n

    def page_table(self, seq_ids):
        """FlashInfer's CSR layout as three int32 arrays."""
        indptr, indices, last = [0], [], []
        for seq_id in seq_ids:
            seq = self.sequences[seq_id]
            indices += seq.pages
            indptr.append(len(indices))
            last.append((len(seq.tokens) - 1) % self.page_size + 1)
        return tuple(np.array(column, np.int32) for column in (indptr, indices, last))

    def block_table(self, seq_ids):
        """vLLM's layout as int32[B, max_pages], padded with -1."""
        rows = [self.sequences[seq_id].pages for seq_id in seq_ids]
        width = max(map(len, rows))
        return np.array([row + [-1] * (width - len(row)) for row in rows], np.int32)

    def _walk(self, tokens):
        """The cached pages of a prompt, and the chained hash of the last of them."""
        size, pages, key = self.page_size, [], 0
        for start in range(0, len(tokens) - size + 1, size):
            part = tuple(tokens[start : start + size])
            child = hash((key, part))
            page = self.cached.get(child)
            if page is None or self.content[page] != (child, part):
                break
            pages.append(page)
            key = child
        return pages, key

    def _take(self):
        page = self.free.popleft() if self.free else self._evict_one()
        self.holders[page] = 1
        return page

    def _evict_one(self):
        page, _ = self.idle.popitem(last=False)
        del self.cached[self.content.pop(page)[0]]
        return page
