"""Ray Serve's PrefixCacheAffinityRouter as a function from a prompt to a replica, no cluster.

The router, its prefix tree and its choice among the candidates are Ray's own code. Ours are only
the replicas, whose queue lengths come from the simulation, and the calls of the tree's actor, which
are made in this process.
"""

import asyncio
import random
import weakref
from types import SimpleNamespace

import numpy as np

N_SURROGATES, FIRST_SURROGATE = 0x800, 0xD800


class BlockTexts:
    """The prompts of a trace as text: as many characters as tokens, one character for each text.

    So two prompts have as many characters in common as tokens, and matches cost Ray's tree, which
    compares character by character, a quarter of what they would for English text.
    """

    def __init__(self, trace):
        self._starts = np.unique(trace.start)

    def __call__(self, tokens):
        points = np.searchsorted(self._starts, tokens, "right").astype("<u4")
        points[points >= FIRST_SURROGATE] += N_SURROGATES
        return points.tobytes().decode("utf-32-le")


class _Here:
    """The methods of an object as those of an actor: `tree.insert.remote(...)`."""

    def __init__(self, target):
        self._target = target

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self._target, name))


class _Replica:
    """What the router asks of a replica."""

    node_id = availability_zone = None
    multiplexed_model_ids = frozenset()
    max_ongoing_requests = 2**31

    def __init__(self, replica_id, queue_length):
        self.replica_id, self._queue_length = replica_id, queue_length

    async def get_queue_len(self, *, deadline_s):
        return self._queue_length()


class RayRouter:
    """Routes prompts as a deployment of `n` replicas with PrefixCacheAffinityRouter does.

    `loads()` are the queue lengths now; `options` go to the router's `initialize_state`.
    """

    def __init__(self, n, loads, text_of, **options):
        from ray.llm._internal.serve.routing_policies.prefix_aware import prefix_aware_router
        from ray.llm._internal.serve.routing_policies.prefix_aware.prefix_tree import PrefixTree
        from ray.serve._private.common import (
            DeploymentHandleSource,
            DeploymentID,
            ReplicaID,
            RequestMetadata,
        )
        from ray.serve._private.request_router.common import PendingRequest

        prefix_aware_router.ray = SimpleNamespace(get=lambda value: value)
        random.seed(0)
        self.tree = PrefixTree()
        self._loads, self._text_of = loads, text_of
        self._loop = asyncio.new_event_loop()
        weakref.finalize(self, self._loop.close)
        deployment = DeploymentID("bench", "bench")
        ids = [ReplicaID(f"{i:04}", deployment) for i in range(n)]
        self._number = {id_: i for i, id_ in enumerate(ids)}
        replicas = [_Replica(id_, lambda i=i: int(loads()[i])) for i, id_ in enumerate(ids)]
        self._request = lambda text: PendingRequest(
            [SimpleNamespace(prompt=text)],
            {},
            RequestMetadata("r", "r"),
            0.0,
            self._loop.create_future(),
        )

        async def start():
            router = prefix_aware_router.PrefixCacheAffinityRouter(
                deployment_id=deployment,
                handle_source=DeploymentHandleSource.REPLICA,
                use_replica_queue_len_cache=True,
                get_curr_time_s=lambda: 0.0,
            )
            router.initialize_state(tree_actor=_Here(self.tree), **options)
            router.update_replicas(replicas)
            await asyncio.sleep(0)
            return router

        self.router = self._loop.run_until_complete(start())

    def __call__(self, tokens):
        """The replica of a prompt, by its number."""
        return self._loop.run_until_complete(self._route(self._text_of(tokens)))

    async def _route(self, text):
        router, request = self.router, self._request(text)
        for id_, load in zip(self._number, self._loads(), strict=True):
            router.replica_queue_len_cache.update(id_, int(load))
        ranks = await router.choose_replicas(list(router.curr_replicas.values()), request)
        for candidates in ranks:
            chosen = await router._select_from_candidate_replicas(candidates, 0)
            if chosen is not None:
                router.on_request_routed(request, chosen.replica_id, None)
                return self._number[chosen.replica_id]
        raise AssertionError("no replica was chosen")
