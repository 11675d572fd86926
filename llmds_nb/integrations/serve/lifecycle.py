"""The beginning and the end of a server.

At its end requests under way are finished or told, and documents are saved.
"""

import asyncio
import logging

from llmds_nb import RetrievalPipeline, Scheduler

from .state import ServerState

_log = logging.getLogger(__name__)


def warm_up(pipeline: RetrievalPipeline | None) -> None:
    """Load the kernels of a search and of a batch, so that the first request does not wait.

    The encoder of the pipeline, which is asked nothing else, encodes a query.
    """
    scheduler = Scheduler(policy="fair")
    scheduler.submit(1)
    scheduler.complete(scheduler.get_batch(idle=True).ids)
    small = RetrievalPipeline(dim=2)
    small.add([0, 1], ["page", "token"], [[1, 0], [0, 1]])
    small.search("page", vectors=[1, 0])
    small.documents(small.search(["page", "token"], vectors=[[1, 0], [0, 1]]))
    if pipeline is not None and pipeline.encoder is not None and len(pipeline):
        pipeline.view().candidates("page", 1)


async def drain(state: ServerState) -> None:
    """Let no request in, and wait for those under way, at most `drain_timeout_s`.

    Those that are not done then get 503, or end where they are if their answer has begun.
    """
    state.draining = True
    left = set(state.under_way)
    if left:
        _, left = await asyncio.wait(left, timeout=state.settings.drain_timeout_s)
    if left:
        _log.warning("%d requests were not done in time, and were ended", len(left))
        state.ending = True
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=1.0)


async def finish(state: ServerState) -> None:
    """Drain, end the workers, and save what is not saved. A second call does nothing.

    Raises what `Writer.save` does.
    """
    if state.finished:
        return
    state.finished = True
    await drain(state)
    await asyncio.to_thread(state.close)
    if state.writer.unsaved:
        await asyncio.to_thread(state.writer.save)
