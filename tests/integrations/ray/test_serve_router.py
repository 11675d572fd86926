"""PrefixRequestRouter in Ray's own loop, over replicas without a cluster; and in Serve."""

import asyncio
import os
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("ray.serve", reason="Ray Serve is not installed")

from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
)
from ray.serve.request_router import PendingRequest

from llmds_nb import PrefixRouter
from llmds_nb.integrations.ray.serve_router import PrefixRequestRouter

DEPLOYMENT = DeploymentID("model", "app")


class Replica:
    """What Serve's router asks of a replica."""

    availability_zone = None
    max_ongoing_requests = 4

    def __init__(self, name, *, models=(), node=None):
        self.replica_id, self.node_id = ReplicaID(name, DEPLOYMENT), node
        self.multiplexed_model_ids = set(models)
        self.running = 0

    async def get_queue_len(self, *, deadline_s):
        return self.running


def pending(*args, model="", **kwargs):
    metadata = RequestMetadata(f"r{id(args)}", f"i{np.random.default_rng().integers(2**62)}")
    metadata.multiplexed_model_id = model
    future = asyncio.get_running_loop().create_future()
    return PendingRequest(list(args), kwargs, metadata, future=future)


def started(replicas, **options):
    router = PrefixRequestRouter(
        deployment_id=DEPLOYMENT,
        handle_source=DeploymentHandleSource.REPLICA,
        self_node_id="here",
        prefer_local_node_routing=options.pop("local", False),
        use_replica_queue_len_cache=False,
    )
    router.initialize_state(**options)
    router.update_replicas(replicas)
    return router


async def chosen(router, request):
    """The name of the replica that Serve's own loop picks."""
    replica = await asyncio.wait_for(router._choose_replica_for_request(request), 10)
    router.on_request_routed(request, replica.replica_id, None)
    return replica.replica_id.unique_id


async def test_choices_are_those_of_a_prefix_router():
    replicas = [Replica(name) for name in "cabd"]
    router = started(replicas, page_size=4)
    plain = PrefixRouter(4, page_size=4)
    rng = np.random.default_rng(0)
    heads = ["".join(rng.choice(list("abcdef"), 12)) for _ in range(6)]
    for _ in range(200):
        text = heads[rng.integers(6)] + "".join(rng.choice(list("abcdef"), rng.integers(1, 20)))
        expected = plain.route(np.frombuffer(text.encode(), np.uint8).astype(np.int32))
        assert await chosen(router, pending(text)) == "abcd"[expected]  # in the order of names
    assert router.router.stats() == plain.stats()


async def test_prompts_are_found_in_every_form():
    router = started([Replica("a")])
    message = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    spoken = SimpleNamespace(messages=[SimpleNamespace(role="user", content="hi")])
    forms = [
        (pending("hi"), "hi"),
        (pending(7, SimpleNamespace(prompt="hi")), "hi"),
        (pending({"prompt": "hi"}), "hi"),
        (pending(prompt="hi"), "hi"),
        (pending({"prompt": [5, 6]}), [5, 6]),
        (pending([5, 6]), [5, 6]),
        (pending({"prompt": ["h", "i"]}), "hi"),
        (pending(spoken), "\0user\0hi"),
        (pending({"messages": message}), "\0user\0hi"),
        (pending(messages=message), "\0user\0hi"),
        (pending(7), None),
        (pending(), None),
        (pending({"text": "hi"}), None),
    ]
    for request, expected in forms:
        assert router.prompt_of(request) == expected, expected
        assert await chosen(router, request) == "a"
    routed = router.router.stats().routed
    assert routed == sum(expected is not None for _, expected in forms)
    for odd in ([-1], [2**31], np.array([2**40]), "\ud800"):  # for the replica to refuse
        assert await chosen(router, pending(odd)) == "a"


async def test_a_full_replica_passes_its_requests_on_and_is_charged_once():
    replicas = {name: Replica(name) for name in "abc"}
    router = started(list(replicas.values()), page_size=4, max_imbalance=float("inf"))
    home = await chosen(router, pending("a long prompt"))
    replicas[home].running = 4
    busy = next(name for name in "abc" if name != home)
    replicas[busy].running = 3
    free = next(name for name in "abc" if name not in (home, busy))
    assert await chosen(router, pending("a long prompt")) == free
    assert router.router.stats().routed == 2
    for replica in replicas.values():
        replica.running = 4
    request = pending("a long prompt")
    waiting = asyncio.ensure_future(chosen(router, request))
    while router.num_routing_tasks_in_backoff == 0:
        await asyncio.sleep(0)
    replicas[home].running = 0
    assert await waiting == home
    assert router.router.stats().routed == 3  # however often it was tried


async def test_replicas_come_and_go():
    router = started([])
    assert router.router is None
    waiting = asyncio.ensure_future(chosen(router, pending("early")))
    await asyncio.sleep(0)
    replicas = [Replica(name) for name in "abcd"]
    router.update_replicas(replicas[:3])
    assert await waiting in "abc" and router.router.replicas == [0, 1, 2]
    homes = {text: await chosen(router, pending(text)) for text in map(str, range(1000, 1040))}
    router.on_replica_actor_died(replicas[1].replica_id)
    router.on_replica_actor_died(replicas[1].replica_id)
    assert router.router.replicas == [0, 2]
    router.update_replicas([replicas[0], replicas[2], replicas[3]])
    assert router.router.replicas == [0, 2, 3]
    for text in homes:
        assert await chosen(router, pending(text)) in "acd"
    router.update_replicas([])
    assert router.router is None
    router.update_replicas(replicas)
    assert await chosen(router, pending("late")) in "abcd" and len(router.router) == 4


async def test_models_and_nodes_that_serve_prefers_come_first():
    replicas = [Replica("a", node="here"), Replica("b", models=["lora"]), Replica("c")]
    router = started(replicas)
    texts = [f"{i} some prompt" for i in range(20)]
    assert {await chosen(router, pending(text, model="lora")) for text in texts} == {"b"}
    router = started(replicas, local=True)
    assert {await chosen(router, pending(text)) for text in texts} == {"a"}
    replicas[0].running = 4
    assert {await chosen(router, pending(text)) for text in texts} == {"b", "c"}


@pytest.mark.parametrize(
    "options", [{"page_size": 3}, {"max_imbalance": 0.5}, {"max_prefixes": 0}, {"key": ""}]
)
async def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        started([], **options)


@pytest.mark.nightly
def test_a_deployment_of_serve_uses_it(amount):
    if amount(True, False):
        pytest.skip("Ray Serve takes half a minute to start: nightly")
    import ray
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    path = "llmds_nb.integrations.ray.serve_router:PrefixRequestRouter"
    config = RequestRouterConfig(request_router_class=path, request_router_kwargs={"page_size": 4})

    @serve.deployment(
        num_replicas=2, ray_actor_options={"num_cpus": 0.1}, request_router_config=config
    )
    class Echo:
        def __call__(self, prompt):
            return os.getpid()

    own = not ray.is_initialized()  # else that of the session
    if own:
        ray.init(num_cpus=4, include_dashboard=False, namespace="serve_router", log_to_driver=False)
    try:
        serve.start(proxy_location="Disabled")
        handle = serve.run(Echo.bind(), name="echo", route_prefix=None)
        plain, processes = PrefixRouter(2, page_size=4), {}
        for i in range(40):
            text = f"{i % 8} begins a group, {i}"
            expected = plain.route(np.frombuffer(text.encode(), np.uint8).astype(np.int32))
            process = handle.remote(text).result(timeout_s=60)
            processes.setdefault(expected, set()).add(process)
        assert len(processes) == len(set.union(*processes.values())) == 2
    finally:
        serve.shutdown()
        if own:
            ray.shutdown()
