"""A ShardedPipeline over simulated actors: rankings, deaths at any call, interrupts at any line."""

import random

import pytest

from llmds_nb import RetrievalPipeline
from llmds_nb.integrations.ray.placement import placed
from tests.interrupts import interrupt_every_line

from .samples import Samples, assert_same_ranking, rankings

SAMPLES = Samples(300)
# What runs in the process that calls.
COORDINATOR = tuple(
    f"ray/{name}.py"
    for name in ("coordinator", "moving", "opening", "replicas", "searching", "sharded", "state")
)


@pytest.mark.parametrize(
    ("n_shards", "kind"), [(1, int), (2, str), (3, int), (4, str), (4, int), (7, int)]
)
def test_the_ranking_is_that_of_one_pipeline(sharded, n_shards, kind):
    many, one = sharded(n_shards, dim=8), RetrievalPipeline(dim=8)
    ids = [kind(i) for i in range(300)]
    for pipeline in (many, one):
        SAMPLES.add(pipeline, range(250), ids[:250])
        pipeline.remove(ids[20:60])
        SAMPLES.add(pipeline, range(240, 300), ids[240:300])
    many.check()
    assert len(many) == len(one) == 260
    for options in rankings(ids):
        assert_same_ranking(many, one, SAMPLES.queries, vectors=SAMPLES.query_vectors, **options)
    hits = many.search(SAMPLES.queries, vectors=SAMPLES.query_vectors)
    assert many.documents(hits) == one.documents(hits)
    assert many.get(ids[:20]) == one.get(ids[:20])


class Model:
    """What is acknowledged: the place in SAMPLES of each id, and since when."""

    def __init__(self):
        self.documents, self.unsaved, self.ever = {}, set(), {}

    def add(self, ids, place):
        for id_ in ids:
            self.documents[id_] = place
            self.unsaved.add(id_)
            self.ever.setdefault(id_, set()).add(place)

    def remove(self, ids):
        for id_ in ids:
            self.documents.pop(id_, None)
            self.unsaved.add(id_)


def check_contents(pipeline, model):
    """All that was acknowledged is found, or the hits say which shards are missing."""
    hits = pipeline.search("word", 400, vectors=[1.0, 0.0], exact=True)
    found = dict(zip(hits.ids.tolist(), hits.scores.tolist(), strict=True))
    found.pop(-1, None)
    shards = pipeline.shards
    missing, lost = set(hits.missing), pipeline.lost()
    assert all(shard in shards for shard in missing)
    for shard, ids in lost.items():
        assert shard in missing and set(ids) <= model.unsaved
        assert all(placed(ids, shards) == shard)
    every = list({*found, *model.documents})
    for id_, shard in zip(every, placed(every, shards).tolist(), strict=True) if every else ():
        if id_ in found:
            (document,) = pipeline.documents([id_])
            if id_ in model.documents and id_ not in lost.get(shard, ()):
                assert document.text == f"word {model.documents[id_]}"
            else:  # as it was once
                assert id_ in lost[shard]
                assert int(document.text.split()[1]) in model.ever[id_]
        else:
            assert shard in missing


def write(pipeline, model, rng, step):
    """Add or remove some documents; what raises has said what it has not done."""
    from llmds_nb.integrations.ray import ShardsMissingError

    ids = rng.sample(range(60), rng.randint(1, 20))
    try:
        if rng.random() < 0.7:
            pipeline.add(ids, [f"word {step}"] * len(ids), [[1.0, step % 7]] * len(ids))
            model.add(ids, step)
        else:
            ids = [id_ for id_ in ids if id_ in model.documents]
            pipeline.remove(ids)
            model.remove(ids)
    except ShardsMissingError as error:
        assert error.ids and set(error.ids) <= set(ids) and error.shards
        done = [id_ for id_ in ids if id_ not in error.ids]
        assert not done or "nothing was changed" not in str(error)
        if "not removed" in str(error):
            model.remove(done)
        else:
            model.add(done, step)


@pytest.mark.nightly
@pytest.mark.parametrize("replication", [1, 2])
def test_deaths_at_every_call_lose_nothing_silently(
    sharded, fake_ray, tmp_path, amount, replication
):
    from llmds_nb.integrations.ray import ShardsMissingError

    died = 0
    for seed in range(amount(2, 300)):
        rng = random.Random(seed)
        fake_ray.moment, fake_ray.handles = lambda handle, name: "", []
        model, pipeline = Model(), sharded(rng.randint(1, 4), dim=2, replication=replication)

        def moment(handle, name, rng=rng):
            return rng.choice(["before", "after"]) if rng.random() < 0.03 else ""

        fake_ray.moment = moment
        for step in range(40):
            choice = rng.random()
            try:
                if choice < 0.6:
                    write(pipeline, model, rng, step)
                elif choice < 0.75:
                    pipeline.save(tmp_path)
                    model.unsaved = {id_ for ids in pipeline.lost().values() for id_ in ids}
                elif choice < 0.8:
                    pipeline.add_shard()
                elif choice < 0.85 and len(pipeline.shards) > 1:
                    pipeline.remove_shard(rng.choice(pipeline.shards))
                else:
                    pipeline.search("word", vectors=[1.0, 0.0])
            except ShardsMissingError as error:
                assert set(error.shards) <= {*range(99)}
            if step % 4 == 0:
                fake_ray.moment = lambda handle, name: ""
                check_contents(pipeline, model)
                if step % 8 == 0:
                    pipeline.recover()
                    pipeline.check()
                    check_contents(pipeline, model)
                    assert set(pipeline.stats().missing) == set(pipeline.lost())
                fake_ray.moment = moment
        died += len(fake_ray.handles) - len(fake_ray.live)
    assert died > 5


def filled(sharded, replication=1):
    pipeline = sharded(3, dim=8, replication=replication)
    SAMPLES.add(pipeline, range(40))
    return pipeline


def observed(pipeline):
    hits = pipeline.search(SAMPLES.queries, 50, vectors=SAMPLES.query_vectors, exact=True)
    return hits.ids.tolist(), hits.scores.tolist(), hits.missing, pipeline.shards


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name", ["add", "first add", "remove", "add_shard", "remove_shard", "save", "search"]
)
def test_an_interrupt_at_any_line_leaves_all_or_nothing(sharded, tmp_path, amount, name):
    def call(pipeline):
        if "add" in name and "shard" not in name:
            SAMPLES.add(pipeline, range(30, 60))
        elif name == "remove":
            there = [id_ for id_ in range(10, 20) if id_ in pipeline]
            pipeline.remove(there)
        elif name == "add_shard":
            if 3 not in pipeline.shards:
                pipeline.add_shard()
        elif name == "remove_shard":
            if 1 in pipeline.shards:
                pipeline.remove_shard(1)
        elif name == "save":
            pipeline.save(tmp_path)
        else:
            observed(pipeline)

    def make():
        return sharded(2, dim=8) if name == "first add" else filled(sharded)

    n = interrupt_every_line(make, call, observed, only=COORDINATOR, every=amount(53, 3))
    assert n > 1


def test_a_save_that_is_interrupted_leaves_the_last_one(sharded, tmp_path, amount):
    def make():
        pipeline = filled(sharded)
        pipeline.save(tmp_path)
        return pipeline

    def call(pipeline):
        SAMPLES.add(pipeline, range(30, 60))
        pipeline.save(tmp_path)

    def saved(pipeline):
        return observed(sharded.load(tmp_path))

    # A save is one file system's, so what was interrupted is compared with both.
    interrupt_every_line(make, call, saved, only=("ray/opening.py", "ray/manifest.py"), every=31)


def test_a_shard_that_dies_is_restarted_and_says_what_it_lacks(sharded, fake_ray, tmp_path):
    from llmds_nb.integrations.ray import ShardsMissingError

    pipeline = filled(sharded)
    pipeline.save(tmp_path)
    SAMPLES.add(pipeline, range(50), [*range(30, 80)])
    pipeline.remove([0, 1, 2, 3])
    wanted = placed(list(range(80)), pipeline.shards)
    for handle in fake_ray.live:
        handle._dead = True
    hits = pipeline.search("fox", vectors=[1.0] * 8)
    assert hits.missing == (0, 1, 2) and (hits.ids == -1).all()
    stats = pipeline.recover()
    lost = {id_ for ids in pipeline.lost().values() for id_ in ids}
    assert lost == set(range(30, 80)) and stats.lost == 50 and stats.missing == (0, 1, 2)
    assert len(pipeline) == 36  # what was removed since is removed again
    assert not any(id_ in pipeline for id_ in range(4))
    for shard, ids in pipeline.lost().items():
        assert (wanted[ids] == shard).all()
    pipeline.remove([35])  # as the save has it; and one that it has not
    pipeline.remove([79])
    pipeline.add(range(30, 80), SAMPLES.texts[:50], SAMPLES.vectors[:50])
    assert pipeline.lost() == {} and pipeline.stats().missing == ()
    assert pipeline.search("fox", vectors=[1.0] * 8).missing == ()
    with pytest.raises(KeyError, match="99"):
        pipeline.remove([99])
    fake_ray.live[0]._dead = True
    with pytest.raises(ShardsMissingError):
        pipeline.save(tmp_path)
    pipeline.recover()
    assert pipeline.lost()
    pipeline.forget_lost()
    assert pipeline.lost() == {} and pipeline.search("fox", vectors=[1.0] * 8).missing == ()


@pytest.mark.parametrize("kind", [int, str])
def test_the_weight_is_tuned_as_that_of_one_pipeline(sharded, kind):
    many, one = sharded(3, dim=8), RetrievalPipeline(dim=8)
    ids = [kind(i) for i in range(300)]
    # Relevant is what the words say, not the vectors.
    relevant = [{ids[i]: 1 for i in range(300) if SAMPLES.texts[i] == q} for q in SAMPLES.queries]
    relevant[0] |= {kind(7000): 2}  # unknown
    vectors = SAMPLES.query_vectors
    for pipeline in (many, one):
        SAMPLES.add(pipeline, range(300), ids)
        with pytest.raises(ValueError, match="at least 2"):
            pipeline.tune_weight(SAMPLES.queries, [[]] * 12, vectors=vectors)
        with pytest.raises(ValueError, match="target_recall"):
            pipeline.tune(SAMPLES.queries, vectors=vectors, target_recall=7)
    weights = {p.tune_weight(SAMPLES.queries, relevant, vectors=vectors) for p in (many, one)}
    assert len(weights) == 1 and weights == {many.weight} and many.weight < 0.7
    tuned = many.tune(SAMPLES.queries, relevant, vectors=vectors, target_recall=0.9)
    assert tuned.ef > 0 and tuned.weight == many.weight
    assert_same_ranking(many, one, SAMPLES.queries, vectors=vectors)


def test_what_is_lost_is_saved_and_loaded(sharded, fake_ray, tmp_path):
    pipeline = filled(sharded)
    fake_ray.live[1]._dead = True
    pipeline.search("fox", vectors=[1.0] * 8)
    pipeline.recover()
    lost = pipeline.lost()
    assert list(lost) == [1]
    pipeline.save(tmp_path)
    again = sharded.load(tmp_path)
    assert again.lost() == lost and again.search("fox", vectors=[1.0] * 8).missing == (1,)


def test_without_its_save_a_shard_stays_missing_and_says_why(sharded, fake_ray, tmp_path):
    pipeline = filled(sharded)
    pipeline.save(tmp_path)
    for path in tmp_path.glob("shard-0.*"):
        path.rename(tmp_path / "away")
    fake_ray.live[0]._dead = True
    stats = pipeline.recover()
    assert stats.missing == (0,) and "does not exist" in stats.shards[0].error
    assert pipeline.search("fox", vectors=[1.0] * 8).missing == (0,)
    (tmp_path / "away").rename(path)
    stats = pipeline.recover()
    assert stats.missing == () and stats.shards[0].error is None and len(pipeline) == 40


def test_a_write_that_a_shard_refuses_is_raised_and_leaves_the_others(
    sharded, fake_ray, monkeypatch
):
    from llmds_nb.integrations.ray import ShardsMissingError
    from llmds_nb.integrations.ray.shard import Shard

    pipeline, add, calls = filled(sharded), Shard.add, []

    def fail_once(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("no memory")
        return add(*args, **options)

    monkeypatch.setattr(Shard, "add", fail_once)
    with pytest.raises(ShardsMissingError, match="no memory") as raised:
        SAMPLES.add(pipeline, range(100, 140))
    assert 0 < len(raised.value.ids) < 40
    pipeline.check()
    assert all((id_ in pipeline) != (id_ in raised.value.ids) for id_ in range(100, 140))
    monkeypatch.setattr(Shard, "add", lambda *_, **__: (_ for _ in ()).throw(MemoryError("none")))
    with pytest.raises(MemoryError, match="none"):
        SAMPLES.add(pipeline, range(200, 240))
    monkeypatch.undo()
