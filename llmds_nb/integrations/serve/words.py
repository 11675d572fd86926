"""Searches by words alone: of a pipeline without an encoder, for queries without vectors."""

from typing import Any

import numpy as np

from .errors import problem


def is_by_words(pipeline: Any, options: dict[str, Any]) -> bool:
    """Whether a search with these options has words alone to go by."""
    return pipeline.encoder is None and "vectors" not in options


def words_alone(pipeline: Any, options: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """The options of a search by words alone: vectors of zeros, which have no weight.

    A Problem of status 400 where a weight other than 0 was asked for: no vector could have it.

    Parameters
    ----------
    pipeline : RetrievalPipeline
    options : dict
    shape : ints
        Of the vectors, but for their dimension: () for one query, (n,) for n.
    """
    weight = options.get("weight", 0)
    if weight != 0:
        text = f"weight is {weight:g}, but there is nothing to weigh: this server has no encoder, "
        problem(400, f"{text}so give a vector for each query, or no weight", "weight")
    zeros = np.zeros((*shape, pipeline.stats().dim or 1), np.float32)
    return {**options, "vectors": zeros, "weight": 0.0}
