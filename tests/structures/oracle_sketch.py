"""A plain reference for CountMinSketch: lists of Python ints, one item at a time."""

from llmds_nb.structures.item_hashing import hash_items, plain

COUNTER_MAX = 2**32 - 1
MULTIPLIER = 0xD1342543DE82EF95


class PlainSketch:
    def __init__(self, width, depth, conservative, n_buckets, seed=0):
        self.rows = [[0] * width for _ in range(depth)]
        self.conservative = conservative
        self.buckets = [[] for _ in range(n_buckets)]  # [hash, item, count] of up to 8 candidates
        self.seed = seed

    def columns(self, h):
        bits = (len(self.rows[0]) - 1).bit_length()
        for _ in self.rows:
            yield h >> (64 - bits)
            h = h * MULTIPLIER % 2**64

    def hash(self, item):
        return int(hash_items(item, self.seed)[1][0])

    def candidate(self, h):
        if self.buckets:
            for entry in self.buckets[h % len(self.buckets)]:
                if entry[0] == h:
                    return entry
        return None

    def least_cell(self, h):
        return min(row[c] for row, c in zip(self.rows, self.columns(h), strict=True))

    def estimate(self, item):
        h = self.hash(item)
        entry = self.candidate(h)
        return entry[2] if entry else self.least_cell(h)

    def add(self, item, count=1):
        if count == 0:
            return
        h = self.hash(item)
        target = min(self.estimate(item) + count, COUNTER_MAX)
        for row, column in zip(self.rows, self.columns(h), strict=True):
            if self.conservative:
                row[column] = max(row[column], target)
            else:
                row[column] = min(row[column] + count, COUNTER_MAX)
        entry = self.candidate(h)
        if entry:
            entry[2] = target
        elif self.buckets:
            bucket = self.buckets[h % len(self.buckets)]
            if len(bucket) < 8:
                bucket.append([h, plain(item), target])
            else:
                weakest = min(bucket, key=lambda e: e[2])  # the first of equals, as in the kernel
                if target > weakest[2]:
                    weakest[:] = [h, plain(item), target]

    def top(self):
        return {entry[1]: entry[2] for bucket in self.buckets for entry in bucket}
