"""Known-item questions, and recall and MRR of their answers."""

import numpy as np
import pytest

from llmds_nb.tools.demo import questions as q
from llmds_nb.tools.demo.corpus import Document

REST = "What follows has enough words to be a document of its own."


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One two. Three.", "One two."),
        ("Is it so? Yes.", "Is it so?"),
        ("No stop at all\n\nNext paragraph.", "No stop at all"),
        ("Use e.g. numpy 1.2 here. Then.", "Use e.g. numpy 1.2 here."),
        ("Over two\nlines. Rest", "Over two\nlines."),
        ("", ""),
    ],
)
def test_first_sentence(text, sentence):
    first, rest = q.split_first_sentence(text)
    assert first == sentence
    assert rest == text[len(sentence) :].strip()


def test_question_lacks_the_name_and_the_document_lacks_the_sentence():
    document = Document("lib.mod.fsolve", f"Fsolve finds roots; fsolve uses fsolver code. {REST}")
    question, left = q.question_of(document)
    assert question == "finds roots; uses fsolver code."
    assert left == Document("lib.mod.fsolve", REST)
    assert "finds roots" not in left.text


def test_name_of_a_file_is_its_stem():
    question, _ = q.question_of(
        Document("docs/salt.md:12", f"Salt makes the water boil late. {REST}")
    )
    assert question == "makes the water boil late."


@pytest.mark.parametrize(
    "text",
    ["Too short. " + REST, "This is a fine first sentence. Short rest.", "a " * 10, ""],
)
def test_documents_without_a_good_question(text):
    assert q.question_of(Document("x", text)) is None


def documents(n):
    return [
        Document(f"d{i}", f"Sentence {'abc'[i % 3]}{'x' * i} has words enough. {REST}")
        for i in range(n)
    ]


def test_make_questions_repeats_with_the_seed_and_keeps_the_order():
    docs = documents(60)
    one = q.make_questions(docs, 3, 7, np.random.default_rng(5))
    assert one == q.make_questions(docs, 3, 7, np.random.default_rng(5))
    assert one != q.make_questions(docs, 3, 7, np.random.default_rng(6))
    assert len(one.tuning) == 3
    assert len(one.test) == 7
    asked = {question.answer for question in one.tuning + one.test}
    assert len(asked) == 10
    for row, document in enumerate(one.documents):
        assert document.source == docs[row].source
        assert (document.text == REST) == (row in asked)
        assert (document == docs[row]) == (row not in asked)


def test_make_questions_takes_at_most_a_third_and_no_repeated_question():
    docs = documents(12)
    made = q.make_questions(docs, 300, 700, np.random.default_rng(0))
    assert (len(made.tuning), len(made.test)) == (2, 2)
    made = q.make_questions(docs[:4], 300, 700, np.random.default_rng(0))
    assert (len(made.tuning), len(made.test)) == (0, 2)
    same = [Document(f"s{i}", f"The very same sentence for all. {REST}") for i in range(9)]
    assert q.make_questions(same, 3, 7, np.random.default_rng(0))[:2] == ([], [])


def test_quality_counts_ranks_up_to_ten():
    found = np.arange(24).reshape(2, 12)
    assert q.quality(found, [0, 13]) == q.Quality(1.0, 0.75)
    assert q.quality(found, [9, 23]) == q.Quality(0.5, 0.05)
    assert q.quality(np.full((1, 10), -1), [3]) == q.Quality(0.0, 0.0)
