"""KVCache: save and load, mapped and not, damaged files, saving beside a writer."""

import enum
import threading

import numpy as np
import pytest

import llmds_nb
from llmds_nb import CapacityError, CorruptFileError, CountMinSketch, KVCache
from llmds_nb._core import storage

T = 4
SALTS = [0, -3, 10**30, "0", b"0", "", b"", "\u00e9", "\ud83d\ude00", "\U0001f600", b"\xff\x00"]


def used(**settings):
    """A cache with some of everything in it, and the handle of a pin."""
    cache = KVCache(40, T, **settings)
    rng = np.random.default_rng(2)
    for i, salt in enumerate(SALTS):
        cache.attach(i, [7] * (i + 1), salt=salt, priority=i % 3)
        cache.commit(i, i + 1)
    cache.detach([3, 7, 9])
    cache.fork(5, 20)
    cache.append(20, [1, 2, 3, 4])
    if cache.kv is not None:
        cache.kv[:] = rng.normal(size=cache.kv.shape)
    handle = cache.pin([7] * 8, salt=SALTS[7])
    cache.set_quota("q", 6)
    cache.attach(30, range(20), salt="q")
    return cache, handle


def go_on(cache, handle):
    """Work on with it; all that it answers on the way."""
    rng, answers = np.random.default_rng(3), []
    for step in range(150):
        seq_id, salt = 100 + step, SALTS[rng.integers(len(SALTS))]
        tokens = rng.integers(0, 2, rng.integers(0, 14))
        try:
            answers.append(cache.attach(seq_id, tokens, salt=salt))
            cache.commit(seq_id, len(tokens))
            answers.append(cache.append(seq_id, [step]).tolist())
        except CapacityError as error:
            answers.append(str(error))
        if seq_id in cache and step % 7:
            cache.detach(seq_id)
        if step == 75:
            cache.unpin(handle)
            answers.append([moved.tolist() for moved in cache.pending_copies()])
            answers.append([moved.tolist() for moved in cache.compact()])
    cache.check()
    return [*answers, *seen(cache)]


def seen(cache):
    answers = [cache.stats(), repr(cache), cache.n_pages, cache.page_size, cache.kv_shape]
    answers += [cache.match([7] * 11, salt=salt) for salt in [*SALTS, "q", "none"]]
    for seq_id in range(300):
        if seq_id in cache:
            answers += [cache.tokens(seq_id).tolist(), cache.page_table(seq_id).indices.tolist()]
            if cache.kv is not None:
                answers.append(cache.get(seq_id).tobytes())
    return answers


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize(
    "settings",
    [{}, {"kv_shape": (2, 3), "dtype": np.float32}, {"eviction": "path-lrfu", "key": b"k"},
     {"kv_shape": (1,), "eviction": "lfu", "prefix_sharing": False}],
    ids=["plain", "tensors", "path-lrfu", "unshared"],
)  # fmt: skip
def test_a_loaded_cache_answers_and_works_on_as_the_saved_one(tmp_path, settings, mmap):
    path = tmp_path / "cache.safetensors"
    cache, handle = used(**settings)
    cache.save(path)
    saved = path.read_bytes()
    loaded = KVCache.load(path, mmap=mmap)
    loaded.check()
    assert seen(loaded) == seen(cache)
    assert loaded.dtype == cache.dtype and loaded.eviction == cache.eviction
    answers = go_on(cache, handle)
    assert go_on(loaded, handle) == answers
    assert path.read_bytes() == saved  # work on a mapped cache never reaches the file
    again = llmds_nb.load(path, mmap=mmap, verify=True)
    assert type(again) is KVCache
    again.save(tmp_path / "again")
    assert go_on(KVCache.load(tmp_path / "again"), handle) == answers


@pytest.mark.parametrize("mmap", [False, True])
def test_an_empty_cache_is_kept_too(tmp_path, mmap):
    KVCache(3, 1).save(tmp_path / "empty")
    cache = KVCache.load(tmp_path / "empty", mmap=mmap)
    cache.check()
    assert len(cache) == 0 and cache.attach(1, [1, 2, 3]) == 0
    cache.check()


class Tenant(int, enum.Enum):
    ONE = 1


def test_a_salt_that_equals_another_is_the_same_tenant(tmp_path):
    cache = KVCache(4, 1)
    cache.attach(1, [5], salt=Tenant.ONE)
    cache.commit(1, 1)
    cache.save(tmp_path / "cache")
    assert KVCache.load(tmp_path / "cache").match([5], salt=1) == 1
    digests = [cache.prefix_digests([5], salt=salt).tobytes() for salt in (1, Tenant.ONE)]
    assert digests[0] == digests[1]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("kv") / "cache"
    used(kv_shape=(1,))[0].save(path)
    return path.read_bytes()


def refuse(path, data, **how):
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match="cache"):
        KVCache.load(path, **how)


@pytest.mark.parametrize("mmap", [False, True])
def test_truncated_and_lengthened_files_are_refused(tmp_path, file, mmap):
    start = 8 + int.from_bytes(file[:8], "little")
    for n in [
        0,
        1,
        7,
        8,
        9,
        start // 2,
        start - 1,
        start,
        start + 1,
        len(file) // 2,
        len(file) - 1,
    ]:
        refuse(tmp_path / "cache", file[:n], mmap=mmap)
    refuse(tmp_path / "cache", file + b"\0", mmap=mmap)


def flipped(data, byte, bit):
    return data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :]


@pytest.mark.parametrize("mmap", [False, True])
def test_files_with_a_flipped_bit_are_refused(tmp_path, file, mmap):
    rng = np.random.default_rng(4)
    start = 8 + int.from_bytes(file[:8], "little")
    for byte in range(int(mmap), start, 3):  # the header is checked even where the arrays are not
        refuse(tmp_path / "cache", flipped(file, byte, rng.integers(8)), mmap=mmap)
    for byte in rng.integers(start, len(file), 100).tolist():
        refuse(tmp_path / "cache", flipped(file, byte, rng.integers(8)), mmap=mmap, verify=True)


def test_files_of_others_are_refused(tmp_path):
    path = tmp_path / "cache"
    CountMinSketch(64).save(path)
    with pytest.raises(CorruptFileError, match="CountMinSketch"):
        KVCache.load(path)
    refuse(path, b"something else altogether")
    with pytest.raises(FileNotFoundError):
        KVCache.load(tmp_path / "nothing")


class Policy:
    def keys(self, events):
        return np.zeros(len(events.pages))


def test_array_names_in_files_never_change(tmp_path):
    path = tmp_path / "cache"
    KVCache(4, 2, kv_shape=(1,)).save(path)
    _, arrays, header = storage.read(path)
    names = ["dom", "events", "hot", "kv", "meta", "page", "pins", "pool", "seq", "tok"]
    assert sorted(arrays) == names
    assert sorted(header) == [
        "domains", "dtype", "eviction", "extra", "key", "kv_shape", "max_events", "n_pages",
        "next_pin", "page_size", "pins", "prefix_sharing", "version",
    ]  # fmt: skip


def test_a_custom_policy_is_given_again_at_load(tmp_path):
    path = tmp_path / "cache"
    cache = KVCache(4, 2, eviction=Policy())
    cache.attach(1, [1, 2, 3])
    cache.commit(1, 3)
    cache.save(path)
    with pytest.raises(TypeError, match="eviction="):
        KVCache.load(path)
    with pytest.raises(TypeError, match="keys"):
        KVCache.load(path, eviction=3)
    policy = Policy()
    loaded = KVCache.load(path, eviction=policy)
    assert loaded.eviction is policy and loaded.match([1, 2]) == 2
    KVCache(4, 2).save(path)
    with pytest.raises(TypeError, match="'lru'"):
        KVCache.load(path, eviction=policy)


def test_a_file_saved_beside_a_writer_is_whole(tmp_path):
    cache = KVCache(128, 64, kv_shape=(64,), dtype=np.float32)
    n, done = 64 * 100, threading.Event()
    cache.attach(1, np.arange(n))

    def write():
        value = 0
        while not done.is_set():
            value += 1
            cache.write(1, 0, np.full((n, 64), value, np.float32))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(6):
            cache.save(tmp_path / "cache")
            rows = KVCache.load(tmp_path / "cache").get(1)
            assert (rows == rows[0, 0]).all()
    finally:
        done.set()
        writer.join()
