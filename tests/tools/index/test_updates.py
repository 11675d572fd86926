"""Any order of changes to files, additions and removals, against a plain dict of sources."""

import random
from pathlib import Path

import pytest

from llmds_nb import RetrievalPipeline
from llmds_nb.tools.index.files import find_files
from llmds_nb.tools.index.reading import Options, read_chunks
from llmds_nb.tools.index.report import Report
from llmds_nb.tools.index.run import Job, build, update
from llmds_nb.tools.index.settings import Settings
from llmds_nb.tools.progress import Progress

NAMES = ["a.txt", "d/b.md", "d/e/c.rst", "t.csv", "d/u.jsonl"]
PARTS = [
    "Red foxes run.",
    "# Stars\n\nThey shine.",
    "Salt melts ice on roads at night.",
    "",
    "\n\n",
]
OPTIONS = Options(max_tokens=6, overlap=2)


def write(name, rng):
    """A file of a few texts, whose records have ids that no other file has."""
    parts = rng.sample(PARTS, rng.randint(1, 4))
    if name.endswith(".csv"):
        lines = [f'{name}{i},"{part}",{i}' for i, part in enumerate(parts)]
        text = "\n".join(["id,text,n", *lines])
    elif name.endswith(".jsonl"):
        lines = [f'{{"id": "{name}{i}", "text": {part!r}}}' for i, part in enumerate(parts)]
        text = "\n".join(lines).replace("'", '"')
    else:
        text = "\n\n".join(parts)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)


def job(paths):
    return Job(paths, OPTIONS, Settings(), Report(), Progress())


def read(paths):
    """{source: {id: (text, metadata)}} of the files as they are."""
    files = find_files(paths, Report())
    read = read_chunks(files, OPTIONS, Report(), Progress())
    return {name: {c.id: (c.text, c.metadata) for c in chunks} for name, chunks in read.items()}


@pytest.mark.parametrize("seed", range(3))
def test_a_file_holds_what_was_read_last_of_each_source(tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    rng, out = random.Random(seed), Path("out.llmds")
    for name in NAMES:
        write(name, rng)
    Path("a.txt").write_text(PARTS[0])  # no index is made of no text
    build(job(NAMES), out)
    model = read(NAMES)
    for _ in range(8):
        for name in rng.sample(NAMES, 2):
            write(name, rng)
        known = [name for name in model if model[name]]
        removed = rng.sample(known, min(len(known), rng.randint(0, 1)))
        others = [name for name in NAMES if name not in removed]
        paths = rng.sample(others, rng.randint(0, 3)) or (["d"] if not removed else [])
        before = {id_: chunk for own in model.values() for id_, chunk in own.items()}
        if any(name.startswith("d/") for name in removed) and "d" in paths:
            paths = []
        for name in removed:
            del model[name]
        model |= read(paths) if paths else {}
        result = update(job(paths), removed, out)
        after = {id_: chunk for own in model.values() for id_, chunk in own.items()}
        pipeline = RetrievalPipeline.load(out)
        pipeline.check()
        documents = pipeline.documents(pipeline.ids())
        assert {d.id: (d.text, d.metadata) for d in documents} == after
        shared = before.keys() & after.keys()
        assert (result.documents, result.sources, result.added, result.changed, result.removed) == (
            len(after), sum(map(bool, model.values())), len(after) - len(shared),
            sum(before[id_] != after[id_] for id_ in shared), len(before) - len(shared),
        )  # fmt: skip
