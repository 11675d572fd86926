"""Why a document has its score for a query, term by term."""

import numpy as np

from ..primitives.status import ABSENT
from ..text.kernels.tokenize import queries_group
from ..text.token_batch import TokenBatch
from ..text.vocabulary import StringTable
from . import documents
from .kernels.postings import posting_find
from .kernels.scoring import VARIANTS, bm25_contribution, bm25_idf, bm25_weights
from .results import Explanation, TermScore
from .search import Formula, vocabulary
from .segments import Snapshot, find_terms


def explain(
    snapshot: Snapshot, formula: Formula, table: StringTable, tokens: TokenBatch, number: int,
    doc: int,
) -> Explanation:  # fmt: skip
    """The score of document `doc` of segment `number` for one query, a TokenBatch."""
    variant = VARIANTS[formula.variant]
    terms, counts = np.empty((2, len(tokens.ids)), np.int32)
    blob, ptr = vocabulary(snapshot, table)
    term_ptr = np.empty(2, np.int64)
    n = queries_group(blob, ptr, tokens.ids, tokens.indptr, terms, counts, term_ptr)
    terms, counts = terms[:n], counts[:n]
    ordinals, df = find_terms(snapshot, terms)
    gain, bonus = np.empty((2, n))
    bm25_weights(variant, formula.k1, snapshot.n_docs, df, counts, gain, bonus)
    segment, handle = snapshot.segments[number], snapshot.handles[number]
    (length,) = documents.lengths_at(segment, np.array([doc]))
    total, term_scores = 0.0, []
    for e, term in enumerate(table.texts(terms)):
        if not df[e]:
            continue
        ordinal = int(ordinals[number][e])
        tf = posting_find(handle.address, ordinal, doc) if ordinal != ABSENT else 0
        score = 0.0
        if tf and gain[e] > 0:
            saturation = formula.saturation(snapshot)
            score = bm25_contribution(float(tf), length, gain[e], bonus[e], saturation)
        total += score
        idf = bm25_idf(variant, snapshot.n_docs, df[e])
        term_scores.append(TermScore(term, int(counts[e]), int(tf), int(df[e]), idf, score))
    return Explanation(total, term_scores)
