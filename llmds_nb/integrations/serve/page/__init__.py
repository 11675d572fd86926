"""One page for people: search, why each hit is one, and the server's figures as they change."""

from starlette.routing import Route

from ..state import ServerState
from . import explaining, figures, files


def routes(state: ServerState) -> list[Route]:
    """The page with its files, which need no key, and the data that only it needs, which do."""
    of_pipeline = [] if state.pipeline is None else explaining.routes(state)
    return [*files.routes(state), *figures.routes(state), *of_pipeline]
