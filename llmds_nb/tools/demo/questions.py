"""Known-item questions: sentences of the corpus, answered by the document that each came from.

A document's first sentence is removed from it. Without the name of the documented object, it is the
question, and the rest of the document is its only right answer. Other documents may answer it, too,
but nobody judged them: the figures compare methods, they do not tell the quality a user would see.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llmds_nb._core.typing import ArrayLike

from .corpus import Document

MIN_QUESTION_WORDS = 4
MAX_QUESTION_WORDS = 40
MIN_REST_WORDS = 8
DEPTH = 10  # recall and MRR look at the first ten answers

_WORD = re.compile(r"[^\W\d_]{2,}")
# Up to a full stop, question or exclamation mark before white space, but not that of "e.g.", "vs.".
_SENTENCE = re.compile(r".+?(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\bcf)[.!?](?=\s|$)", re.DOTALL)
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_RULE = re.compile(r"^\s*([-=~^*#])\1{2,}\s*$", re.MULTILINE)


class Question(NamedTuple):
    """A query and the row of the document that answers it."""

    text: str
    answer: int


class QuestionSet(NamedTuple):
    """Questions for tuning and for the report, and all documents without the sentences asked."""

    tuning: list[Question]
    test: list[Question]
    documents: list[Document]


class Quality(NamedTuple):
    """Share of questions answered in the first ten hits; mean of 1 / rank, 0 beyond ten."""

    recall_at_10: float
    mrr_at_10: float


def split_first_sentence(text: str) -> tuple[str, str]:
    r"""Return the first sentence of the first paragraph, and all that follows it.

    >>> split_first_sentence("Sort a list, e.g. of names.  Stable.\n\nMore.")
    ('Sort a list, e.g. of names.', 'Stable.\n\nMore.')
    """
    paragraph = _PARAGRAPH_END.split(text, maxsplit=1)[0]
    match = _SENTENCE.match(paragraph)
    end = match.end() if match else len(paragraph)
    return text[:end].strip(), text[end:].strip()


def question_of(document: Document) -> tuple[str, Document] | None:
    """The document's question and the document without it; None if it has no usable question."""
    sentence, rest = split_first_sentence(document.text)
    stem = document.source.rsplit(":", 1)[0]
    name = re.split(r"[./]", stem.removesuffix(".txt").removesuffix(".md").removesuffix(".rst"))[-1]
    question = _RULE.sub(" ", sentence)
    if name and name.casefold() in question.casefold():  # to compile the pattern only if needed
        question = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", " ", question, flags=re.IGNORECASE)
    question = " ".join(question.split())
    words = len(_WORD.findall(question))
    if not MIN_QUESTION_WORDS <= words <= MAX_QUESTION_WORDS:
        return None
    if len(_WORD.findall(rest)) < MIN_REST_WORDS:
        return None
    return question, Document(document.source, rest)


def make_questions(
    documents: Sequence[Document], n_tuning: int, n_test: int, rng: np.random.Generator
) -> QuestionSet:
    """Draw distinct questions from at most a third of the documents.

    At most `n_tuning` and `n_test` are drawn; a smaller corpus gives fewer in the same proportion,
    and of less than four, none is for tuning. The documents of the result are in the given order;
    the answers are without their first sentence.
    """
    drawn = {row: made for row, document in enumerate(documents) if (made := question_of(document))}
    times: dict[str, int] = {}
    for question, _ in drawn.values():
        times[question.casefold()] = times.get(question.casefold(), 0) + 1
    rows = [row for row, (question, _) in drawn.items() if times[question.casefold()] == 1]
    n = min(n_tuning + n_test, max(len(documents) // 3, 2), len(rows))
    n_tuning = max(n * n_tuning // (n_tuning + n_test), 2) if n >= 4 else 0
    rows = [rows[i] for i in rng.permutation(len(rows))[:n]]
    asked = list(documents)
    for row in rows:
        asked[row] = drawn[row][1]
    questions = [Question(drawn[row][0], row) for row in rows]
    return QuestionSet(questions[:n_tuning], questions[n_tuning:], asked)


def quality(found_ids: ArrayLike, answers: ArrayLike) -> Quality:
    """Recall@10 and MRR@10 of known items; O(n).

    `found_ids` int64[n, >= 10] are rows of documents, best first, -1 for a missing hit; `answers`
    int64[n].

    >>> quality(np.array([[7, 3], [1, 2]]), np.array([3, 9]))
    Quality(recall_at_10=0.5, mrr_at_10=0.25)
    """
    hit = np.asarray(found_ids)[:, :DEPTH] == np.asarray(answers)[:, None]
    rank = hit.argmax(axis=1) + 1
    found = hit.any(axis=1)
    return Quality(float(found.mean()), float((found / rank).mean()))
