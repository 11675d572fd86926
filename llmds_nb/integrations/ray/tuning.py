"""Tunes the fusion weight of a ShardedPipeline, and `ef_search` of its shards."""

from typing import Any

from llmds_nb.pipeline import Tuning, tuned_weight

from ..._core import validation
from .arguments import checked_vectors, query_vectors
from .coordinator import Coordinator
from .failures import shards_missing
from .replicas import ask
from .searching import Queries, ShardedSource
from .state import State
from .terms import TermCache

_DEPTH = 100  # candidates of each half


def weight_tuned(
    state: State, terms: TermCache, numbers_of: Any, queries: Any, relevant: Any, vectors: Any
) -> Tuning:
    """The result of RetrievalPipeline.tune_weight for the documents of all shards."""
    texts, array = _checked(state, queries, vectors)
    source = ShardedSource(state, Queries(texts, array, None, None, False, 1), terms)
    return tuned_weight(
        source.candidates(list(range(len(texts))), _DEPTH), relevant,
        fusion=state.settings.fusion, weight=state.settings.weight, numbers_of=numbers_of,
    )  # fmt: skip


def ef_tuned(coordinator: Coordinator, queries: Any, vectors: Any, target_recall: float) -> int:
    """Tune each shard that has documents, as RetrievalPipeline.tune does; the largest ef."""
    state = coordinator.state
    texts, array = _checked(state, queries, vectors)
    parts = {shard.id: (texts, array, target_recall) for shard in state.shards if shard.documents}
    failed = coordinator.write("tune", parts, lambda state, done: state)
    for error in failed.values():
        if error is not None:
            raise error
    groups = {i: coordinator.state.shard(i).group for i in parts}
    found, missing = ask(groups, lambda _, handle: handle.figures.remote())
    if failed or missing:
        raise shards_missing("they were not tuned", sorted({*failed, *missing}))
    tuned = max(
        (coordinator.state.shard(i).tuned for i in parts), key=lambda each: each[0] if each else 0
    )
    others = {shard.id: (tuned,) for shard in state.shards if shard.id not in parts}
    coordinator.write("configure", others, lambda state, done: state)
    return max(each.ef_search for each in found.values())


def _checked(state: State, queries: Any, vectors: Any) -> tuple[list[str], Any]:
    texts = list(validation.texts(queries, "queries"))
    if not texts:
        raise ValueError("tune needs at least one query")
    if not state.n:
        raise ValueError("there are no documents to tune on")
    settings = state.settings
    if vectors is None:
        vectors = query_vectors(settings.encoder, texts, settings.dim)
    if vectors is None:
        raise ValueError("vectors are needed, since the pipeline has no encoder (none given)")
    return texts, checked_vectors(vectors, settings.dim, texts)
