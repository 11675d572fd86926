"""What a RetrievalPipeline holds, read by id."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from .._core import validation
from .._core.typing import ArrayLike
from ..bm25.index import Hits, InvertedIndex
from ..hnsw.index import HNSW
from ..primitives.status import ABSENT
from .explaining import HitExplanation, explained
from .filtering import wheres_of
from .hybrid import HybridIndex, check_known
from .keys import Ids, plain_ids
from .results import Document
from .search import Request, Searcher, checked_fusion, requests_of
from .view import PipelineView


class Contents:
    """What a pipeline tells of its documents, but for searches."""

    _index: HybridIndex
    _fusion: str
    _weight: float

    @property
    def dense(self) -> HNSW | None:
        """The dense half; None before the first vectors."""
        return self._index.dense

    @property
    def sparse(self) -> InvertedIndex:
        """The sparse half."""
        return self._index.sparse

    @property
    def encoder(self) -> Any:
        """The encoder, or None."""
        return self._index.embedder.encoder

    def view(self) -> PipelineView:
        """The documents as they are now, for searches that later writes do not change. O(1).

        Several pipelines, each with a part of the documents, rank as one by their views.
        """
        return PipelineView(self._index)

    def ids(self, where: dict[str, Any] | None = None) -> NDArray[Any]:
        """The ids of all documents, or of those whose metadata fits, in the order of their rows.

        That is the order in which they were last added. O(n log n), and O(n) for each condition.

        Parameters
        ----------
        where : dict, optional
            As for `search`.

        Returns
        -------
        int64[n], or object[n] of str

        >>> from llmds_nb import RetrievalPipeline
        >>> pipeline = RetrievalPipeline(dim=2)
        >>> given = [{"lang": "en"}, {"lang": "de"}]
        >>> _ = pipeline.add(["b", "a"], ["red fox", "Fuchs"], [[1, 0], [0, 1]], metadata=given)
        >>> pipeline.ids().tolist(), pipeline.ids({"lang": "de"}).tolist()
        (['b', 'a'], ['a'])
        """
        return self._index.ids(where)

    def get(self, ids: Ids | Sequence[int | str | None] | None) -> list[str | None]:
        """The texts of documents, in the order of `ids` (which may repeat).

        What `search` pads with, the id -1 or None, gives None.

        Raises
        ------
        KeyError
            An id is not in the pipeline.
        """
        return self._index.get(ids)

    def documents(self, hits: Hits | Ids) -> list[Document] | list[list[Document]]:
        """The documents of hits, best first: a list for one query, a list of lists for a batch.

        Missing places are left out, and so are documents that were removed since the search; of one
        replaced since it is the new text and metadata. All are of one moment. Ids alone do as well,
        as for `get`; their score is NaN.

        Raises
        ------
        KeyError
            An id given as such is not in the pipeline.

        >>> from llmds_nb import RetrievalPipeline
        >>> pipeline = RetrievalPipeline(dim=2)
        >>> _ = pipeline.add(["a"], ["red fox"], [[1, 0]], metadata=[{"year": 2020}])
        >>> pipeline.documents(pipeline.search("fox", vectors=[1, 0]))
        [Document(id='a', text='red fox', metadata={'year': 2020}, score=1.0)]
        """
        return self._index.documents(hits)

    def explain(
        self, query: str, ids: Ids | Sequence[int | str | None] | None, *, k: int = 10,
        vectors: ArrayLike | None = None, fusion: str | None = None, weight: float | None = None,
        where: dict[str, Any] | None = None,
    ) -> list[HitExplanation]:  # fmt: skip
        """Why documents have the scores that `search` gives them: both halves, word by word.

        Takes the time of a few searches of the query.

        Parameters
        ----------
        query : str
        ids : int or str, or several
            Of the documents, hits or not; they may repeat. What `search` pads with is left out.
        k, vectors, fusion, weight, where : optional
            As for the `search` whose hits are to be explained; vectors: float32[d].

        Returns
        -------
        list of HitExplanation
            One for each document, in the order of `ids`; all are of one moment.

        Raises
        ------
        KeyError
            An id is not in the pipeline.

        >>> from llmds_nb import RetrievalPipeline
        >>> pipeline = RetrievalPipeline(dim=2)
        >>> _ = pipeline.add([1, 2], ["red fox", "blue sky"], [[1, 0], [0, 1]])
        >>> (why,) = pipeline.explain("fox", 1, vectors=[1, 0])
        >>> why.score, why.distance, [(term.term, term.tf) for term in why.terms]
        (1.0, 0.0, [('fox', 1)])
        """
        index, text = self._index, validation.text(query, "query")
        k, wheres = validation.answers(k), wheres_of(where, 1)
        fusion, weight = checked_fusion(fusion, weight, (self._fusion, self._weight), index.dense)
        wanted = plain_ids(ids, unique=False, padded=True)
        snapshot, numbers, rows = index._found(wanted)
        check_known(wanted, numbers, rows)
        plain = Request("", k, fusion, weight)
        rows_of_one = None if vectors is None else validation.array_of(vectors, "vectors")[None]
        (request,) = requests_of(plain, [text], rows_of_one, snapshot.dim, wheres=wheres)
        searcher = Searcher(index, snapshot, index.settings)
        return explained(searcher, request, numbers[rows != ABSENT])
