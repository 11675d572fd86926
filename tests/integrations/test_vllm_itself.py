"""The events of vLLM itself, where it is installed: its classes, and its publisher."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytest.importorskip("msgpack")
pytest.importorskip("zmq")

import msgpack
import zmq

from llmds_nb import PrefixRouter
from llmds_nb.integrations.vllm_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    Subscriber,
    pack_batch,
    read_batch,
)

from .test_vllm_sockets import until


@pytest.fixture(scope="module")
def vllm_python():
    """A Python that has vLLM: this one, or that of LLMDS_VLLM_PYTHON."""
    python = os.environ.get("LLMDS_VLLM_PYTHON") or (sys.executable if find_spec("vllm") else None)
    if python is None or not shutil.which(python):
        pytest.skip("no vllm here: set LLMDS_VLLM_PYTHON to a Python that has it")
    return python


def test_vllm_itself_reads_and_writes_them(vllm_python):
    full = BlockStored(
        [b"a" * 32, 7], b"p" * 32, [1, 2, 3, 4], 2, 1, "GPU", "french", [None, ["image", 3]], 1,
        "full_attention", 9, "LOCAL", "tier", "session",
    )  # fmt: skip
    small = BlockStored([5], None, [1], 1)
    events = [full, small, BlockRemoved([b"x", 3], "CPU", 2, "REMOTE", "t"), BlockRemoved([1])]
    payload = pack_batch(EventBatch(1.5, [*events, AllBlocksCleared()], 3))
    code = (
        "import sys, json, msgspec\n"
        "from vllm.distributed.kv_events import KVEventBatch\n"
        "batch = msgspec.msgpack.decode(bytes.fromhex(sys.argv[1]), type=KVEventBatch)\n"
        "names = [[type(e).__name__, msgspec.structs.asdict(e)] for e in batch.events]\n"
        "encoded = msgspec.msgpack.Encoder().encode(batch)\n"
        "print('OUT', json.dumps([encoded.hex(), repr(names), batch.data_parallel_rank]))\n"
    )
    run = subprocess.run([vllm_python, "-c", code, payload.hex()], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("OUT ")]
    encoded, names, rank = json.loads(line[4:])
    assert rank == 3 and "french" in names and "full_attention" in names
    assert read_batch(bytes.fromhex(encoded)) == read_batch(payload)
    assert msgpack.unpackb(bytes.fromhex(encoded)) == msgpack.unpackb(payload)


PUBLISH = """
import sys
from vllm.distributed.kv_events import *
pub, replay = sys.argv[1:]
publisher = ZmqEventPublisher(0, endpoint=pub, replay_endpoint=replay, topic="kv")
def stored(hashes, parent, tokens, **more):
    return BlockStored(hashes, parent, tokens, 2, None, "GPU", None, group_idx=0, **more)
def publish(*events):
    publisher.publish(KVEventBatch(ts=1.0, events=list(events)))
publish(stored([b"a" * 32, b"b" * 32], None, [1, 2, 3, 4]))
publish(stored([b"c" * 32], b"b" * 32, [5, 6]), BlockRemoved([b"b" * 32], "GPU", 0))
publish(stored([b"s" * 32], None, [1, 2], extra_keys=[("tenant",)]))
print("READY", flush=True)
for line in sys.stdin:
    publish(stored([b"b" * 32], b"a" * 32, [3, 4]))
publisher.shutdown()
"""


def test_a_router_follows_a_publisher_of_vllm(vllm_python, tmp_path):
    endpoints = [f"ipc://{tmp_path}/{name}" for name in ("pub", "replay")]
    command = [vllm_python, "-c", PUBLISH, *endpoints]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    router = PrefixRouter(2, page_size=2)
    with subprocess.Popen(command, **pipes) as engine, zmq.Context() as context:
        try:
            while engine.stdout.readline() != "READY\n":
                assert engine.poll() is None
            options = {"replay_endpoint": endpoints[1], "context": context}
            with Subscriber(endpoints[0], router, 1, **options) as subscriber:
                until(subscriber, lambda: subscriber.stats().next_number == 3)
                assert router.held_pages == {1: 3} and subscriber.stats().replayed == 3
                for salt, followed in ((0, 1), ("tenant", 2)):
                    router.route([1, 2], salt=salt)
                    assert router.stats().followed == followed
                engine.stdin.write("more\n")
                engine.stdin.flush()
                until(subscriber, lambda: subscriber.stats().next_number == 4)
                assert router.held_pages == {1: 4} and subscriber.stats().lost == 0
                fresh = PrefixRouter.from_bytes(router.to_bytes())
                assert fresh.route([1, 2, 3, 4, 5, 6]) == 1
        finally:
            engine.stdin.close()
            engine.wait(60)
