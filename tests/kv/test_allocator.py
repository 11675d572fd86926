"""PagedAllocator against a dict of counts."""

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmds_nb import CapacityError, PagedAllocator

P = 12


class AllocatorMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.pool = PagedAllocator(P, page_size=4)
        self.count = {}  # live page -> references

    @rule(n=st.integers(0, P + 2))
    def alloc(self, n):
        if n > P - len(self.count):
            with pytest.raises(CapacityError, match=str(n)):
                self.pool.alloc(n)
            return
        pages = self.pool.alloc(n).tolist()
        assert len(set(pages)) == n and not set(pages) & set(self.count)
        self.count.update(dict.fromkeys(pages, 1))

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def share(self, data):
        pages = data.draw(st.lists(st.sampled_from(sorted(self.count)), max_size=6))
        self.pool.share(pages)
        for page in pages:
            self.count[page] += 1

    @rule(pages=st.lists(st.integers(0, P - 1), min_size=1, max_size=8))
    def free(self, pages):
        after = dict(self.count)
        for page in pages:
            after[page] = after.get(page, 0) - 1
        if min(after.values()) < 0:
            with pytest.raises(ValueError, match="double free"):
                self.pool.free(pages)
        else:
            self.pool.free(pages)
            self.count = {page: n for page, n in after.items() if n}

    @rule()
    def compact(self):
        moves = self.pool.compact()
        renamed = dict(zip(moves.src.tolist(), moves.dst.tolist(), strict=True))
        assert len(set(renamed.values())) == len(renamed)
        self.count = {renamed.get(page, page): n for page, n in self.count.items()}
        assert sorted(self.count) == list(range(len(self.count)))

    @invariant()
    def agrees(self):
        self.pool.check()
        want = [self.count.get(page, 0) for page in range(P)]
        assert self.pool.refcount(range(P)).tolist() == want
        assert (self.pool.n_used, self.pool.n_free) == (len(self.count), P - len(self.count))


TestAllocator = AllocatorMachine.TestCase


def test_lowest_free_pages_come_first_and_return_in_order():
    pool = PagedAllocator(6)
    first = pool.alloc(4)
    assert first.tolist() == [0, 1, 2, 3] and first.dtype == np.int32
    pool.free(first)
    assert pool.alloc(4).tolist() == [0, 1, 2, 3]


def test_filled_to_the_last_page_and_one_over():
    pool = PagedAllocator(3)
    pool.alloc(3)
    with pytest.raises(CapacityError, match="1 pages wanted, 0 of 3 free"):
        pool.alloc()
    assert len(pool) == 3 and pool.alloc(0).size == 0


def test_stats_count_shared_pages_and_holes():
    pool = PagedAllocator(8, page_size=2)
    pages = pool.alloc(5)
    pool.share(pages[4])
    pool.free(pages[[0, 2]])
    assert pool.stats() == (8, 2, 5, 3, 1, 2)
    assert "3 of 8" in repr(pool) and pool.nbytes > 0


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda p: PagedAllocator(0), ValueError, "n_pages must be >= 1"),
        (lambda p: PagedAllocator(2.5), TypeError, "n_pages"),
        (lambda p: PagedAllocator(4, page_size=3), ValueError, "power of two, not 3"),
        (lambda p: PagedAllocator(4, page_size=8192), ValueError, "4096"),
        (lambda p: p.alloc(-1), ValueError, "n must be >= 0"),
        (lambda p: p.alloc("2"), TypeError, "n must be an integer"),
        (lambda p: p.free([-1]), ValueError, "-1"),
        (lambda p: p.free([4]), ValueError, r"\[0, 3\], not 4"),
        (lambda p: p.free([0.0]), TypeError, "integers"),
        (lambda p: p.free([[0]]), ValueError, "one-dimensional"),
        (lambda p: p.free(2**70), ValueError, "pages must be in"),
        (lambda p: p.share([3]), ValueError, "page 3 is free"),
        (lambda p: p.refcount([9]), ValueError, "not 9"),
        (lambda p: p.free([0, 0]), ValueError, "double free"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(call, error, match):
    pool = PagedAllocator(4)
    pool.alloc(2)
    with pytest.raises(error, match=match):
        call(pool)
    pool.check()
    assert pool.refcount([0, 1, 2, 3]).tolist() == [1, 1, 0, 0]
