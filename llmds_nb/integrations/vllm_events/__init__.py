"""KV events in the form of vLLM, over ZeroMQ (extra `events`).

An engine publishes what its cache stores and removes; a router that listens knows where a prefix
is. `Publisher` sends the events of a `KVCache` as vLLM (0.32 and before) sends its own, and
`Subscriber` feeds a `PrefixRouter` from either. `encode` and `decode` are the payloads alone.
"""

try:
    import msgpack as _msgpack  # noqa: F401
    import zmq as _zmq  # noqa: F401
except ImportError as error:
    text = (
        "llmds_nb.integrations.vllm_events needs msgpack and pyzmq: pip install 'llmds_nb[events]'"
    )
    raise ImportError(text) from error

from .publisher import Publisher, PublisherStats
from .schema import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    EventFormatError,
    decode,
    encode,
    lora_salt,
    pack_batch,
    read_batch,
)
from .subscriber import Subscriber, SubscriberStats

__all__ = [
    "AllBlocksCleared", "BlockRemoved", "BlockStored", "EventBatch", "EventFormatError",
    "Publisher", "PublisherStats", "Subscriber", "SubscriberStats", "decode", "encode", "lora_salt",
    "pack_batch", "read_batch",
]  # fmt: skip
