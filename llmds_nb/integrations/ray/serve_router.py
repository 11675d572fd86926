"""PrefixRequestRouter: Ray Serve sends requests to the replica that has their prefix."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

try:
    from ray.serve.request_router import (
        LocalityMixin,
        MultiplexMixin,
        PendingRequest,
        ReplicaID,
        RequestRouter,
        RunningReplica,
    )
except ImportError as error:
    text = "llmds_nb.integrations.ray.serve_router needs Ray Serve: pip install 'llmds_nb[ray]'"
    raise ImportError(text) from error

from llmds_nb import PrefixRouter

_CHOICE = "_llmds_nb_choice"  # the attribute of a pending request that has its replica's number


class PrefixRequestRouter(LocalityMixin, MultiplexMixin, RequestRouter):
    """Routes the requests of a deployment of Ray Serve by `PrefixRouter`.

    A request goes to the replica that was sent its longest prefix, unless that one is overloaded.
    If it already has `max_ongoing_requests`, the others are asked, the least busy one first. A
    request without a prompt goes the way of Serve's own router: the less busy one of two.

    The prompt is that of the first argument with an attribute or key ``prompt`` or ``messages``,
    or the first argument that is text or a list of token ids; `prompt_of` of a subclass may find
    it elsewhere. Text counts in bytes of UTF-8.

    Serve makes a router for each handle and proxy, and calls `initialize_state` with the
    deployment's `request_router_kwargs`. Routers that were told of the same replicas in the same
    order agree on prompts that none of them has seen. A route takes some microseconds, in the
    router's process: no actor is asked.

    Examples
    --------
    >>> from ray import serve
    >>> from ray.serve.config import RequestRouterConfig
    >>> @serve.deployment(
    ...     num_replicas=4,
    ...     request_router_config=RequestRouterConfig(
    ...         request_router_class="llmds_nb.integrations.ray.serve_router:PrefixRequestRouter",
    ...         request_router_kwargs={"page_size": 512, "max_imbalance": 1.5},
    ...     ),
    ... )
    ... class Model:
    ...     def __call__(self, prompt: str) -> str: ...
    """

    def initialize_state(
        self, page_size: int = 256, max_imbalance: float = 1.25, max_prefixes: int = 2**18,
        key: str | None = None,
    ) -> None:  # fmt: skip
        """Take the options; Serve calls it.

        Parameters
        ----------
        page_size : int
            Bytes of text, or token ids, of a page: prompts are compared page by page. A power of
            two from 1 to 4096.
        max_imbalance, max_prefixes
            As for `PrefixRouter`.
        key : str, optional
            A secret of 1 to 64 bytes in UTF-8, the same for all routers of the deployment.
        """
        self._options: dict[str, Any] = {
            "page_size": page_size,
            "max_imbalance": max_imbalance,
            "max_prefixes": max_prefixes,
            "key": None if key is None else key.encode(),
        }
        PrefixRouter(1, **self._options)  # refuses what is out of range
        self._router: PrefixRouter | None = None  # while there are no replicas
        self._number: dict[ReplicaID, int] = {}
        self._id: dict[int, ReplicaID] = {}

    def prompt_of(self, request: PendingRequest) -> str | Sequence[int] | None:
        """The prompt of a request, as text or token ids; None where it has none."""
        given = [*request.args, *request.kwargs.values()]
        for name in ("messages", "prompt"):
            if name in request.kwargs:
                return _text_of(request.kwargs[name])
            for value in given:
                if isinstance(value, Mapping) and name in value:
                    return _text_of(value[name])
                if getattr(value, name, None) is not None:
                    return _text_of(getattr(value, name))
        for value in given:
            if isinstance(value, str) or _are_tokens(value):
                return value
        return None

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Have these replicas from now on; Serve calls it."""
        super().update_replicas(replicas)
        self._follow()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Have this replica no longer; Serve calls it."""
        super().on_replica_actor_died(replica_id)
        self._follow()

    def _follow(self):
        """Give the router the replicas that there are."""
        present = set(self._replicas)
        new = sorted(present - self._number.keys(), key=lambda id_: id_.unique_id)
        for id_ in new:
            if self._router is None:
                self._router, number = PrefixRouter(1, **self._options), 0
            else:
                number = self._router.add()
            self._number[id_], self._id[number] = number, id_
        for id_ in self._number.keys() - present:
            number = self._number.pop(id_)
            del self._id[number]
            if self._id:
                self._router.remove(number)
            else:
                self._router = None

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Replicas for a request, in ranks, the best one first.

        Serve calls it, again as long as all are full.
        """
        if pending_request is not None and pending_request.metadata.multiplexed_model_id:
            ids = self.apply_multiplex_routing(pending_request=pending_request)
        else:
            ids = self.apply_locality_routing(pending_request=pending_request)
        allowed = [self._replicas[id_] for id_ in ids if id_ in self._replicas]
        id_ = None if pending_request is None else self._chosen(pending_request)
        first = [replica for replica in allowed if replica.replica_id == id_]
        if first:
            return [first, [replica for replica in allowed if replica.replica_id != id_]]
        return [random.sample(allowed, min(2, len(allowed)))]

    def _chosen(self, request):
        """The replica of a request's prefix: chosen once, or again when it is gone; or None."""
        number = getattr(request, _CHOICE, None)
        if number not in self._id:
            tokens = self._tokens_of(request)
            if tokens is None or self._router is None:
                return None
            number = self._router.route(tokens)
            setattr(request, _CHOICE, number)
        return self._id[number]

    def _tokens_of(self, request):
        prompt = self.prompt_of(request)
        if prompt is None:
            return None
        if isinstance(prompt, str):
            data = prompt.encode("utf-8", "surrogatepass")
            return np.frombuffer(data, np.uint8).astype(np.int32)
        tokens = np.asarray(prompt)
        usable = tokens.ndim == 1 and (not tokens.size or tokens.dtype.kind in "iu")
        if not usable or (tokens.size and not 0 <= tokens.min() <= tokens.max() < 2**31):
            return None  # the replica refuses it, not the router
        return tokens.astype(np.int32)

    @property
    def router(self) -> PrefixRouter | None:
        """The PrefixRouter, for its `stats`; None while there are no replicas."""
        return self._router


def _text_of(value: Any) -> "str | Sequence[int]":
    """The text of a prompt or of messages; token ids as they are."""
    if value is None or _are_tokens(value):
        return [] if value is None else value
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):  # a message, or a part of one
        role = f"\0{value['role']}\0" if "role" in value else ""
        return role + str(_text_of(value.get("text") or value.get("content") or ""))
    if isinstance(value, Sequence):
        return "".join(str(_text_of(each)) for each in value)
    if hasattr(value, "content"):
        return f"\0{getattr(value, 'role', '')}\0{_text_of(value.content)}"
    return ""


def _are_tokens(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and value.dtype.kind in "iu"
    return isinstance(value, list | tuple) and bool(value) and type(value[0]) is int
