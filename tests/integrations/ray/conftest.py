"""Ray, real and simulated, for the tests of this folder; they skip without it."""

import pytest


@pytest.fixture(scope="session")
def cluster():
    """A Ray for all tests, on two CPUs; actors of a test end with it."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    ray.init(
        num_cpus=2, include_dashboard=False, namespace="llmds_nb-tests", log_to_driver=False,
        configure_logging=False,
    )  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.fixture
def fake_ray(monkeypatch):
    """Actors in this process, which die when a test wants it."""
    pytest.importorskip("ray", reason="Ray is not installed")
    from .fake_ray import FakeRay

    fake = FakeRay()
    fake.install(monkeypatch)
    return fake


@pytest.fixture
def sharded(fake_ray):
    """ShardedPipeline, of simulated actors."""
    from llmds_nb.integrations.ray import ShardedPipeline

    return ShardedPipeline
