import os
from pathlib import Path

import pytest


@pytest.fixture
def shared_data():
    """The folder of shared data sets, which are no part of the project."""
    default = Path(__file__).resolve().parents[1] / "../shared/data"
    folder = Path(os.environ.get("LLMDS_DATA", default))
    if not folder.is_dir():
        pytest.skip("no shared data: LLMDS_DATA can name the folder")
    return folder
