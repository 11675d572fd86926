import numpy as np

from llmds_nb.tools.demo import halves
from llmds_nb.tools.demo.questions import Question

NAMES = [f"package.module.name_{i}" for i in range(8)]
QUESTIONS = [Question(f"question {i}", i) for i in range(6)]


def ids(rows):
    """[n, 12]: the answer of question i at column rows[i], or nowhere for -1."""
    found = np.full((len(rows), 12), -1)
    for i, column in enumerate(rows):
        if column >= 0:
            found[i, column] = i
    return found


def test_each_question_is_counted_once_and_the_first_are_examples():
    found = {
        "dense": ids([0, 3, 9, -1, 10, 1]),
        "sparse": ids([2, -1, 11, 5, -1, -1]),
        "fused": ids([0, 2, -1, 0, -1, 11]),
    }
    compared = halves.compare(found, QUESTIONS, NAMES)
    assert compared["questions"] == 6
    assert compared["found"] == {"both": 1, "dense_only": 3, "sparse_only": 1, "neither": 1}
    assert compared["kept_by_fusion"] == {
        "both": 1, "dense_only": 1, "sparse_only": 1, "neither": 0
    }  # fmt: skip
    dense = compared["examples"]["dense_only"]
    assert [(e["question"], e["document"], e["rank"]) for e in dense] == [
        ("question 1", NAMES[1], 4),
        ("question 2", NAMES[2], 10),
    ]
    assert [e["rank"] for e in compared["examples"]["sparse_only"]] == [6]


def test_lines_are_narrow_whatever_the_names():
    questions = [Question("word " * 50, 0)]
    found = {"dense": ids([0]), "sparse": ids([-1]), "fused": ids([-1])}
    for name in ("a" * 300, "x", "folder/" * 30 + "file.txt:123"):
        lines = halves.lines(halves.compare(found, questions, [name]))
        assert max(map(len, lines)) <= 96
        assert lines[2].endswith(f"{name[-10:]}, rank 1")
