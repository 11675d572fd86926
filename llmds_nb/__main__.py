"""`python -m llmds_nb`: the command line of `llmds_nb.tools.main`."""

from .tools.main import command

if __name__ == "__main__":
    command()
