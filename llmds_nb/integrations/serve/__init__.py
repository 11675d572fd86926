"""An HTTP server over a RetrievalPipeline, and an Engine (extra `serve`).

>>> from llmds_nb import RetrievalPipeline
>>> from llmds_nb.integrations.serve import Settings, create_app
>>> app = create_app(RetrievalPipeline(dim=2), settings=Settings(read_only=True))
>>> app.state.server.settings.max_k
1000
"""

try:
    import prometheus_client  # noqa: F401
    import starlette  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    text = (
        "llmds_nb.integrations.serve needs starlette, uvicorn and prometheus-client: pip install "
    )
    raise ImportError(f"{text}'llmds_nb[serve]'") from error

from .app import create_app
from .server import run_server
from .settings import Settings
from .writing import ChangedFileError

__all__ = ["ChangedFileError", "Settings", "create_app", "run_server"]
