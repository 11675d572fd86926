"""What the command line turns into exit code 2: one clear line, no traceback."""


class BadInput(ValueError):
    """Input the user has to mend: a path, a line of a file, an option."""
