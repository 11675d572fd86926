"""A slow, obvious pipeline/kernels/fusion.py on dicts."""

import math


def normalised(scores, method, floor):
    """{id: f(score)} of one list {id: score}."""
    if not scores:
        return {}
    ranked = sorted(scores, key=lambda i: (-scores[i], i))
    high, low = max(scores.values()), min(scores.values())
    if method == "rrf":
        return {id_: 1 / (60 + rank) for rank, id_ in enumerate(ranked, 1)}
    if method == "convex":
        return {i: (s - floor) / (high - floor) if high > floor else 0.0 for i, s in scores.items()}
    if method == "minmax":
        return {i: (s - low) / (high - low) if high > low else 1.0 for i, s in scores.items()}
    mean = sum(scores.values()) / len(scores)
    if high == low:
        return dict.fromkeys(scores, 0.5)
    variance = sum((s - mean) ** 2 for s in scores.values()) / (len(scores) - 1)
    sigma = math.sqrt(variance)
    return {i: (s - (mean - 3 * sigma)) / (6 * sigma) for i, s in scores.items()}


def fuse(dense, sparse, method, weight, k):
    """[(id, score)] of {id: distance} and {id: score}, best first."""
    similar = normalised({i: -d for i, d in dense.items()}, method, -2.0)
    lexical = normalised(sparse, method, 0.0)
    total = {
        i: weight * similar.get(i, 0.0) + (1 - weight) * lexical.get(i, 0.0)
        for i in similar.keys() | lexical.keys()
    }
    return sorted(total.items(), key=lambda entry: (-entry[1], entry[0]))[:k]
