"""ShardedPipeline: a RetrievalPipeline whose documents are spread over actors of Ray."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from llmds_nb import HNSW, InvertedIndex
from llmds_nb.pipeline import Tuned, rank_candidates

from ..._core import validation
from ..._core.typing import ArrayLike, PathLike
from . import moving, opening
from .arguments import (
    checked_documents,
    checked_ids,
    checked_vectors,
    encoded,
    key_filters,
    query_vectors,
)
from .contents import Contents
from .coordinator import Coordinator
from .failures import shards_missing
from .results import ShardedHits, ShardedStats
from .searching import Queries, ShardDied, ShardedSource
from .shard import StaleVersionError
from .state import State, by_place, plain, some
from .terms import TermCache
from .tuning import ef_tuned, weight_tuned

_TRIES = 8  # of a search beside writes, before it lets no more of them in


class ShardedPipeline(Contents):
    """A RetrievalPipeline over many machines: its documents in shards, each an actor of Ray.

    It ranks as one RetrievalPipeline over all documents: the shards score under the statistics of
    all, and their candidates are fused as one list. With ``exact=True`` ids and scores are equal
    bit for bit, unless the dense half stores codes without vectors (``HNSW(store=None)``), which
    each shard chooses by its own documents. The graphs of the shards' dense halves find other
    neighbours now and then than one graph would, not fewer. Encoders run here, in the process that
    calls, where an encoder is also fitted, once, on the texts of the first `add`.

    Parameters
    ----------
    n_shards : int >= 1
        The documents are spread by the hashes of their ids.
    replication : int >= 1
        Actors of each shard. A write is acknowledged when all that live have done it; searches are
        spread over them.
    num_cpus : float
        What Ray reserves for each actor, 0 for nothing.
    encoder, dim, dense, sparse, fusion, weight, seed
        As for `RetrievalPipeline`; `dense` and `sparse` are copied. An encoder that is not fitted
        yet is copied, too, before it is.
    start_timeout : float
        Seconds after which TimeoutError is raised where Ray has not started all actors, as when
        the cluster has not as many CPUs.

    Notes
    -----
    **Failures.** Where an actor dies, another replica of its shard answers. A search of which no
    replica of a shard answers says so in `hits.missing`. `add` and `remove` raise
    `ShardsMissingError`, which names what they have not done: nothing was where the shard was known
    to be gone. Whatever raises, also KeyboardInterrupt, the pipeline can be used on; a write that
    it has interrupted is finished by the next call, in all shards alike.

    A dead actor is replaced, beside the searches: by a copy of a live replica or, where there is
    none, from the last `save` or `load`. Of what was acknowledged since, removals are repeated;
    documents that were added or replaced are gone, or as they were: `lost` names them, and
    `hits.missing` their shards, until they are added again or removed, or `forget_lost` is called.

    Any number of threads may search beside one that writes; each search sees all shards before or
    after a write. `documents` and `get` read what is there at present. One process coordinates:
    a ShardedPipeline cannot be pickled, but its actors can run on any machine of the cluster.

    Raises
    ------
    ImportError
        Ray is not installed.

    Examples
    --------
    See the README.
    """

    def __init__(
        self, n_shards: int, *, replication: int = 1, num_cpus: float = 0.5, encoder: Any = None,
        dim: int | None = None, dense: HNSW | None = None, sparse: InvertedIndex | None = None,
        fusion: str = "convex", weight: float = 0.7, seed: int = 0, start_timeout: float = 300.0,
    ) -> None:  # fmt: skip
        n_shards = validation.integer(n_shards, "n_shards", low=1, high=1 << 16)
        settings = opening.new_settings(encoder, dim, dense, sparse, fusion, weight, seed)
        state = State((), settings, settings.pipeline(), next_shard=n_shards)
        self._start(state, list(range(n_shards)), replication, num_cpus, start_timeout)

    def _start(self, state, shard_ids, replication, num_cpus, timeout):
        replication = validation.integer(replication, "replication", low=1, high=1 << 10)
        num_cpus = validation.real(num_cpus, "num_cpus", low=0)
        timeout = validation.real(timeout, "start_timeout", low=0)
        state = opening.started(state, shard_ids, replication, num_cpus, timeout)
        self._coordinator = Coordinator(state, replication, num_cpus)
        self._terms = TermCache(state.settings.sparse.tokenizer)

    @property
    def encoder(self) -> Any:
        """The encoder, or None."""
        return self._state.settings.encoder

    @property
    def fusion(self) -> str:
        """The default fusion of `search`."""
        return self._state.settings.fusion

    @property
    def weight(self) -> float:
        """The default weight of the dense half."""
        return self._state.settings.weight

    @property
    def shards(self) -> list[int]:
        """The ids of the shards, ascending; the id of one that was removed is not used again."""
        return self._state.shard_ids

    def __repr__(self) -> str:
        state = self._state
        missing = f", missing {state.missing}" if state.missing else ""
        return f"ShardedPipeline({state.n:,} documents, {len(state.shards)} shards{missing})"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a ShardedPipeline cannot be pickled or copied: the process that made it coordinates "
            "its shards. save() it and load() it elsewhere, or call it in an actor of your own"
        )

    # ---- writing ------------------------------------------------------------------------------

    def add(
        self, ids: Any, texts: str | Sequence[str], vectors: ArrayLike | None = None, *,
        metadata: Sequence[dict[str, Any] | None] | None = None,
    ) -> Any:  # fmt: skip
        """Add documents, to all shards at once; one with an existing id is replaced.

        Parameters and result are those of `RetrievalPipeline.add`.

        Raises
        ------
        TypeError, ValueError
            As there; nothing is added.
        ShardsMissingError
            Shards had no live replica before, and nothing is added; or lost their last one
            meanwhile, and `ids` of the error are those of the documents that are not added.
        """
        texts = validation.texts(texts)
        with self._coordinator.lock:
            self._coordinator.begin()
            state = self._state
            settings = state.settings
            given, keys = checked_documents(ids, texts, metadata, state.strings, state.next_number)
            if not texts:
                return given
            encoder, array = encoded(settings.encoder, texts, vectors, settings.dim)
            numbers = keys
            if isinstance(keys, list):
                numbers = state.next_number + np.arange(len(keys))
            chosen = by_place(keys, state)
            self._coordinator.check_live(list(chosen), "no document was added", given.tolist())
            parts = {}
            for i, rows in chosen.items():
                own_keys = some(keys, rows) if isinstance(keys, list) else None
                described = None if metadata is None else some(metadata, rows)
                own = own_keys, some(texts, rows), array[rows], described, numbers[rows]
                parts[i] = own

            def after(state: State, done: set[int]) -> State:
                if not done:
                    return state
                if encoder is not state.settings.encoder or state.settings.dim is None:
                    state = state.with_settings(dim=array.shape[1], encoder=encoder)
                top = max(state.next_number, int(numbers.max()) + 1)
                state = state._replace(strings=isinstance(keys, list), next_number=top)
                rows = np.sort(np.concatenate([chosen[i] for i in done]))
                return state.noted(True, some(keys, rows))

            failed = self._coordinator.write("add", parts, after)
            left = {i: given[chosen[i]].tolist() for i in failed}
            _raise_failed(failed, len(parts), left, "some documents were not added")
            return given

    def remove(self, ids: Any) -> None:
        """Remove documents, from all shards at once.

        Raises
        ------
        KeyError
            An id is not in the pipeline; then nothing is removed.
        TypeError
            Ids of another kind than those of the pipeline.
        ShardsMissingError
            As for `add`.
        """
        with self._coordinator.lock:
            self._coordinator.begin()
            state = self._state
            keys = checked_ids(ids, state.strings, unique=True)
            chosen = by_place(keys, state)
            nothing = "no document was removed; nothing was changed"
            for key, has in zip(plain(keys), self._at_shards("has", keys, nothing), strict=True):
                if not has and key not in state.lost:
                    raise KeyError(f"{key!r} is not in the pipeline")
            parts = {i: (some(keys, rows),) for i, rows in chosen.items()}

            def after(state: State, done: set[int]) -> State:
                rows = [chosen[i] for i in done]
                if not rows:
                    return state
                return state.noted(False, some(keys, np.concatenate(rows))).forgetting()

            failed = self._coordinator.write("discard", parts, after)
            left = {i: plain(parts[i][0]) for i in failed}
            _raise_failed(failed, len(parts), left, "some documents were not removed")

    # ---- searching ----------------------------------------------------------------------------

    def search(
        self, queries: str | Sequence[str], k: int = 10, *, vectors: ArrayLike | None = None,
        fusion: str | None = None, weight: float | None = None, filter: Any = None,
        where: dict[str, Any] | Sequence[dict[str, Any] | None] | None = None,
        min_score: float | None = None, diversity: float | None = None,
        group_by: str | None = None, exact: bool = False, threads: int = 1,
    ) -> ShardedHits:  # fmt: skip
        """The k best documents for each query, over all shards that answer.

        Parameters are those of `RetrievalPipeline.search`; `threads` are those of each shard.
        Ask for many queries at once: a call takes some milliseconds for its messages. One goes to
        each shard for the statistics of terms that were not asked for since the last write, one for
        the candidates, and one for ids of type str.

        Returns
        -------
        ShardedHits
            Hits, as there, with the shards that are `missing` from them.

        Raises
        ------
        ShardDied
            Shards die faster than it can be begun anew.
        """
        coordinator = self._coordinator
        coordinator.check_open()
        coordinator.look_after()
        options = {
            "vectors": vectors, "where": where, "filter": filter, "exact": exact,
            "threads": threads,
        }  # fmt: skip
        ranking = {
            "fusion": fusion, "weight": weight, "min_score": min_score, "diversity": diversity,
            "group_by": group_by,
        }  # fmt: skip
        for _ in range(_TRIES):
            try:
                return self._searched(queries, k, options, ranking)
            except (StaleVersionError, ShardDied):
                coordinator.look_after()
        with coordinator.lock:  # writes are too quick: none is let in meanwhile
            coordinator.begin()
            return self._searched(queries, k, options, ranking)

    def _searched(self, queries, k, options, ranking) -> ShardedHits:
        """`search` under the present state."""
        state, texts = self._state, validation.texts(queries, "queries")
        vectors, settings = options["vectors"], state.settings
        if vectors is None and state.strings is not None:
            vectors = query_vectors(settings.encoder, texts, settings.dim)
        missing, asked = state.missing, list(texts)
        # Whatever is wrong, one pipeline finds; and it answers as there are no documents.
        each = any(isinstance(options[name], list | tuple) for name in ("where", "filter"))
        whole = each or vectors is None or settings.dim is None or state.strings is None
        if whole or isinstance(queries, str):
            checked = queries, vectors
        else:  # by the first query, since all are alike
            vectors = checked_vectors(vectors, settings.dim, asked)
            checked = asked[:1], vectors[:1]
        none = state.pipeline.search(checked[0], k, **{**options, "vectors": checked[1]}, **ranking)
        if state.strings is None or not asked:
            return ShardedHits(none.ids, none.scores, missing)
        filters = options["filter"]
        if filters is not None:
            if state.strings:
                filters = self._numbers_of(key_filters(filters, len(asked)))
            else:
                filters = validation.id_filters(filters, len(asked))
            filters = filters[0] if len(filters) == 1 else filters
        dim: Any = settings.dim
        vectors = validation.vectors(vectors, dim, "vectors")
        asked_for = Queries(
            asked, vectors, _listed(options["where"]), filters, options["exact"],
            options["threads"],
        )  # fmt: skip
        source = ShardedSource(state, asked_for, self._terms)
        ranking = {
            **ranking,
            "fusion": ranking["fusion"] or settings.fusion,
            "weight": settings.weight if ranking["weight"] is None else ranking["weight"],
        }
        ids, scores = rank_candidates(source, len(asked), k, **ranking)
        found: Any = source.keys_of(ids) if state.strings else ids
        missing = tuple(sorted({*missing, *source.missing}))
        if isinstance(queries, str):
            return ShardedHits(found[0], scores[0], missing)
        return ShardedHits(found, scores, missing)

    def _numbers_of(self, filters):
        """Filters by key as filters by number."""
        keys = sorted({key for each in filters if each is not None for key in each})
        numbers = dict(zip(keys, self._at_shards("numbers_of", keys, None), strict=True))
        found = [
            None
            if each is None
            else np.unique([n for key in each if (n := numbers[key]) is not None and n >= 0])
            for each in filters
        ]
        return [None if each is None else each.astype(np.int64) for each in found]

    # ---- settings and figures -----------------------------------------------------------------

    def tune_weight(
        self, queries: str | Sequence[str], relevant: Sequence, *, vectors: ArrayLike | None = None
    ) -> float:
        """Choose and return the weight of the dense half, as `RetrievalPipeline.tune_weight`.

        Raises ShardsMissingError if a shard has no live replica; then nothing is changed.
        """
        with self._coordinator.lock:
            self._coordinator.begin()
            self._coordinator.check_live(self.shards, "it was not tuned")
            state = self._state
            tuning = weight_tuned(
                state, self._terms, self._known_numbers, queries, relevant, vectors
            )
            self._coordinator.state = state.with_settings(weight=tuning.weight)
            return tuning.weight

    def tune(
        self, queries: str | Sequence[str], relevant: Sequence | None = None, *,
        vectors: ArrayLike | None = None, target_recall: float = 0.99,
    ) -> Tuned:  # fmt: skip
        """Choose `ef_search` of each shard, and the weight, as `RetrievalPipeline.tune` does.

        Each shard finds `target_recall` of the neighbours that it has, hence all together do.
        Returns the largest ef, and the weight. Shards without documents and new ones get the
        largest, restarted ones what they had.
        """
        with self._coordinator.lock:
            self._coordinator.begin()
            self._coordinator.check_live(self.shards, "it was not tuned")
            ef = ef_tuned(self._coordinator, queries, vectors, target_recall)
        if relevant is not None:
            self.tune_weight(queries, relevant, vectors=vectors)
        return Tuned(ef, self.weight)

    def _known_numbers(self, ids, name):
        """The numbers of ids, below 0 for an unknown one."""
        keys = checked_ids(ids, self._state.strings, name)
        if isinstance(keys, list):
            return np.array(self._at_shards("numbers_of", keys), np.int64)
        return keys

    def recover(self, *, timeout: float | None = None) -> ShardedStats:
        """Wait until every actor that died is replaced, and return `stats`.

        One whose replacement has failed is tried again.

        Raises
        ------
        TimeoutError
            Some are not after `timeout` seconds.
        """
        if timeout is not None:
            timeout = validation.real(timeout, "timeout", low=0)
        self._coordinator.recover(timeout)
        return self.stats()

    # ---- shards and files ---------------------------------------------------------------------

    def add_shard(self) -> int:
        """Add a shard; documents that it is to hold move there, while searches go on.

        Returns its id. 1 in n + 1 of the documents moves. Raises ShardsMissingError, and changes
        nothing, if a shard has no live replica, or loses its last one meanwhile.
        """
        return moving.add_shard(self._coordinator)

    def remove_shard(self, shard: int) -> None:
        """Move the documents of a shard to the others, while searches go on, and end its actors.

        Raises
        ------
        KeyError
            There is no such shard.
        ValueError
            It is the last.
        ShardsMissingError
            As for `add_shard`.
        """
        moving.remove_shard(self._coordinator, validation.integer(shard, "shard"))

    def save(self, folder: PathLike) -> None:
        """Write everything to a folder that the machines of all actors share.

        Each shard writes one file, and a manifest is written last: a save that fails or is
        interrupted leaves the last one as it was. Files of earlier saves are removed.

        Raises
        ------
        ShardsMissingError
            A shard has no live replica; nothing is saved.
        OSError
            A file cannot be written.
        """
        opening.save(self._coordinator, folder)

    @classmethod
    def load(
        cls, folder: PathLike, *, replication: int | None = None, num_cpus: float = 0.5,
        mmap: bool = True, verify: bool | None = None, encoder: Any = None,
        start_timeout: float = 300.0, **parts: Any,
    ) -> Self:  # fmt: skip
        """Open what `save` wrote, each shard by its actor.

        Parameters
        ----------
        folder : path
            Which the machines of all actors share.
        replication : int, optional
            Default: as it was saved.
        num_cpus, start_timeout
            As for the constructor.
        mmap : bool
            Map the files: actors on one machine share their memory.
        verify : bool, optional
            Read all of every file, to compare it with its checksums. Default: not `mmap`.
        encoder, **parts
            What a file cannot hold, as for `RetrievalPipeline.load`.

        Raises
        ------
        FileNotFoundError
            There is no manifest, or not a file that it names.
        CorruptFileError
            The manifest or a file is torn, altered, of another save, or of a newer version.
        """
        state, shard_ids, saved_replication = opening.opened(folder, mmap, verify, encoder, parts)
        made = cls.__new__(cls)
        replication = saved_replication if replication is None else replication
        made._start(state, shard_ids, replication, num_cpus, start_timeout)
        return made

    def close(self) -> None:
        """End all actors; what was not saved is gone. No other call does anything after it."""
        self._coordinator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _listed(values):
    """Values for each query, in a list; one for all as it is."""
    return list(values) if isinstance(values, list | tuple) else values


def _raise_failed(failed, n_parts, left, did):
    """Raise what a write that has failed on shards has to say, if it has."""
    errors = [error for error in failed.values() if error is not None]
    if not failed:
        return
    if len(errors) == n_parts:  # nothing was changed
        raise errors[0]
    ids = [key for i in sorted(left) for key in left[i]]
    cause = f": {errors[0]!r}" if errors else ""
    raise shards_missing(did, sorted(failed), ids, cause)
