"""`python -m llmds_nb`: the command line of `llmds_nb.tools.main`."""

import sys

from .tools.main import main

if __name__ == "__main__":
    sys.exit(main())
