"""The error that the command line turns into exit code 2 and one line, without a traceback."""


class BadInput(ValueError):
    """Input that the user has to correct: a path, a line of a file, an option."""
