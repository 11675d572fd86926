"""The process that the tests of this folder share."""

import pytest

from .worker import Worker


@pytest.fixture(scope="session")
def worker():
    """A process that loads files, and may crash."""
    with Worker() as made:
        yield made
