"""The end of a server: requests under way are finished or told, and documents are saved."""

import asyncio
import logging

from .state import ServerState

_log = logging.getLogger(__name__)


async def drain(state: ServerState) -> None:
    """Let no request in, and wait for those under way, at most `drain_timeout_s`.

    Those that are not done then get 503 if their answer has not begun, and end.
    """
    state.draining = True
    own = {asyncio.current_task()}
    left = state.under_way - own
    if left:
        _, left = await asyncio.wait(left, timeout=state.settings.drain_timeout_s)
    if left:
        _log.warning("%d requests were not done in time and got 503", len(left))
        state.ending = True
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=1.0)


async def finish(state: ServerState) -> None:
    """Drain, end the workers, and save what is not saved. Raises what `Writer.save` does."""
    await drain(state)
    await asyncio.to_thread(state.close)
    if state.writer.unsaved:
        await asyncio.to_thread(state.writer.save)
