"""A ShardedPipeline over real actors of Ray: rankings, replicas, deaths, files, other threads."""

import random
import re
import shutil
import threading

import pytest

from llmds_nb import CorruptFileError, LsaEncoder, RetrievalPipeline
from llmds_nb.integrations.ray.placement import placed
from tests.conftest import ROOT

from .samples import Samples, assert_same_ranking, rankings

# Ray's own: what it has deprecated, and sockets that it leaves to the collector.
pytestmark = pytest.mark.filterwarnings("ignore")
SAMPLES = Samples(400)


@pytest.fixture(scope="module")
def kinds(cluster):
    """ShardedPipeline and ShardsMissingError, where there is a Ray."""
    from llmds_nb.integrations.ray import ShardedPipeline, ShardsMissingError

    return ShardedPipeline, ShardsMissingError


def kill(cluster, pipeline, shard, replica=0):
    """End the process of an actor, as a machine may."""
    cluster.kill(pipeline._state.shard(shard).group.live[replica].handle)


def search(pipeline, **options):
    return pipeline.search(SAMPLES.queries, vectors=SAMPLES.query_vectors, exact=True, **options)


def test_one_to_four_shards_rank_as_one_pipeline(kinds, vaswani, figures, amount):
    n = amount(1200, 11_000)
    texts, queries = vaswani.texts[:n], vaswani.queries[: amount(20, 93)]
    ids = [f"doc {i}" for i in range(n)]
    one = RetrievalPipeline(encoder=LsaEncoder(32))
    with kinds[0](1, num_cpus=0, encoder=LsaEncoder(32)) as many:
        for n_shards in (1, 2, 3, 4):
            if n_shards > 1:
                before = placed(ids, many.shards)
                added = many.add_shard()
                moved = before != placed(ids, many.shards)
                assert (placed(ids, many.shards)[moved] == added).all()
            part = range((n_shards - 1) * n // 4, n_shards * n // 4)
            for pipeline in (one, many):
                pipeline.add([ids[i] for i in part], [texts[i] for i in part])
                pipeline.remove([ids[i] for i in part[::7]])
            assert len(many) == len(one) and many.shards == [*range(n_shards)]
            for options in ({}, {"fusion": "rrf"}, {"k": 3, "diversity": 0.3}):
                assert_same_ranking(many, one, queries, **options)
            # By the graphs, wherever these find the true neighbours.
            found, wanted = many.search(queries).ids, one.search(queries).ids
            figures(**{f"same hits by graph, {n_shards} shards": (found == wanted).mean()})
            assert (found == wanted).mean() > 0.9
        many.remove_shard(1)
        many.check()
        assert many.shards == [0, 2, 3]
        assert_same_ranking(many, one, queries)
        assert many.documents(many.search(queries)) == one.documents(many.search(queries))


def test_a_replica_answers_for_one_that_died_and_a_copy_takes_its_place(kinds, cluster):
    one = RetrievalPipeline(dim=8)
    with kinds[0](1, replication=2, num_cpus=0, dim=8) as many:
        for pipeline in (one, many):
            SAMPLES.add(pipeline, range(300))
        kill(cluster, many, 0)
        for _ in range(3):
            assert_same_ranking(many, one, SAMPLES.queries, vectors=SAMPLES.query_vectors)
        for pipeline in (one, many):
            pipeline.remove(range(10))  # while the copies are made
        stats = many.recover(timeout=120)
        assert stats.shards[0].replicas == 2 and stats.lost == 0
        many.check()
        kill(cluster, many, 0)  # the older: the copy has all of it
        for options in rankings(list(range(300))):
            assert_same_ranking(
                many, one, SAMPLES.queries, vectors=SAMPLES.query_vectors, **options
            )


@pytest.mark.nightly
def test_kills_while_it_searches_and_adds(kinds, cluster, tmp_path, amount):
    pipeline_kind, missing_error = kinds
    rng, n_kills = random.Random(0), amount(5, 50)
    acknowledged, saved, unsaved = {}, set(), set()
    with pipeline_kind(2, num_cpus=0, dim=8) as pipeline:
        SAMPLES.add(pipeline, range(200))
        pipeline.save(tmp_path)
        saved = set(range(200))
        acknowledged = dict.fromkeys(range(200), 0)
        for step in range(n_kills):
            shard = rng.choice(pipeline.shards)
            handle = pipeline._state.shard(shard).group.live[0].handle
            timer = threading.Timer(rng.random() * 0.05, cluster.kill, [handle])
            timer.start()
            while timer.is_alive() or pipeline._state.shard(shard).group.live:
                ids = rng.sample(range(400), 30)
                try:
                    SAMPLES.add(pipeline, ids)
                except missing_error as error:
                    assert error.shards == (shard,)
                    ids = [id_ for id_ in ids if id_ not in error.ids]
                acknowledged.update(dict.fromkeys(ids, step))
                unsaved.update(ids)
                hits = search(pipeline, k=400)
                assert hits.missing in ((), (shard,))
                found = {id_ for id_ in hits.ids.ravel().tolist() if id_ >= 0}
                wanted = [id_ for id_ in acknowledged if id_ not in found]
                if wanted:  # said, and of that shard alone
                    assert hits.missing and set(placed(wanted, pipeline.shards)) == {shard}
            timer.join()
            stats = pipeline.recover(timeout=120)
            lost = {id_ for ids in pipeline.lost().values() for id_ in ids}
            assert lost <= unsaved and stats.lost == len(lost)
            assert all(id_ in pipeline for id_ in set(acknowledged) - lost)
            assert all(id_ in pipeline for id_ in saved)
            if lost:
                assert search(pipeline).missing == (shard,)
                SAMPLES.add(pipeline, sorted(lost))
            assert search(pipeline).missing == () and len(pipeline) == len(acknowledged)
            if step % 2:
                pipeline.save(tmp_path)
                saved, unsaved = set(acknowledged), set()


def test_a_save_is_loaded_and_every_fault_is_refused(kinds, cluster, tmp_path):
    kind, folder = kinds[0], tmp_path / "saved"
    with kind(2, num_cpus=0, encoder=LsaEncoder(8)) as pipeline:
        ids = [f"{i}" for i in range(100)]
        pipeline.add(ids, SAMPLES.texts[:100], metadata=SAMPLES.metadata[:100])
        pipeline.save(folder)
        shutil.copytree(folder, tmp_path / "first")
        wanted = pipeline.search(SAMPLES.queries, where={"year": {"$lt": 2004}})
        with kind.load(folder, num_cpus=0) as again:
            found = again.search(SAMPLES.queries, where={"year": {"$lt": 2004}})
            assert found.ids.tolist() == wanted.ids.tolist() and len(again) == 100
            assert found.scores.tobytes() == wanted.scores.tobytes()
            assert again.encoder.n_texts == 100
            again.add(["new"], ["red fox"])  # mapped copy-on-write
            again.check()
        pipeline.remove(ids[:50])
        pipeline.save(folder)

    manifest = (folder / "manifest.json").read_bytes()
    (shard,) = folder.glob("shard-1.*")
    content, (other,) = shard.read_bytes(), (tmp_path / "first").glob("shard-1.*")
    shard.write_bytes(other.read_bytes())
    with pytest.raises(CorruptFileError, match="not the file of this save"):
        kind.load(folder, num_cpus=0)
    shard.write_bytes(content[:-10])
    with pytest.raises(CorruptFileError, match="not the file of this save"):
        kind.load(folder, num_cpus=0)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-1"):
        kind.load(folder, num_cpus=0)
    shard.write_bytes(content)
    (folder / "manifest.json").write_bytes(manifest[:-20])
    with pytest.raises(CorruptFileError, match="torn"):
        kind.load(folder, num_cpus=0)
    (folder / "manifest.json").write_bytes(manifest.replace(b'"version": 1', b'"version": 9'))
    with pytest.raises(CorruptFileError, match="version 9"):
        kind.load(folder, num_cpus=0)
    (folder / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="manifest"):
        kind.load(folder, num_cpus=0)


def test_searches_go_on_while_shards_move_and_an_interrupt_leaves_no_half(
    kinds, cluster, monkeypatch
):
    one = RetrievalPipeline(dim=8)
    with kinds[0](1, num_cpus=0, dim=8) as many:
        for pipeline in (one, many):
            SAMPLES.add(pipeline, range(400))
        wanted, found, end = search(one).ids.tolist(), [], threading.Event()

        def go_on():
            while not end.is_set():
                hits = search(many)
                found.append(hits.missing == () and hits.ids.tolist() == wanted)

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            assert many.add_shard() == 1
            many.remove_shard(0)
        finally:
            end.set()
            thread.join()
        assert len(found) > 3 and all(found)
        many.check()

        def interrupted(*args, **options):
            monkeypatch.undo()
            raise KeyboardInterrupt

        many.remove(range(100, 400))
        monkeypatch.setattr(cluster, "get", interrupted)
        with pytest.raises(KeyboardInterrupt):
            many.add(range(90, 200), SAMPLES.texts[:110], SAMPLES.vectors[:110])
        assert len(many) == 100  # nothing of it is seen
        assert search(many, k=400).ids.max() < 100
        many.remove([199])
        assert len(many) == 199 and search(many, k=400).missing == ()
        many.check()


def test_the_example_of_the_readme_runs(kinds, tmp_path, capsys):
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"<!-- ray -->\n```python\n(.*?)```", readme, re.S)
    exec(code.replace("/shared/kb", str(tmp_path / "kb")), {})
    assert capsys.readouterr().out == "red sky at night\n"
    assert (tmp_path / "kb" / "manifest.json").exists()


def test_actors_that_do_not_start_are_reported(kinds):
    with pytest.raises(TimeoutError, match=r"1 of 1 actors .* Ray has 2"):
        kinds[0](1, num_cpus=50, start_timeout=0.5)
