"""What a RetrievalPipeline holds, read by id."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from ..bm25.index import Hits
from .hybrid import HybridIndex
from .keys import Ids
from .results import Document


class Contents:
    """The reading half of a pipeline that needs no search."""

    _index: HybridIndex

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
