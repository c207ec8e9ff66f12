"""The one exception that means: the user can mend this."""


class UserError(ValueError):
    """A mistake in what the user gave us: one sentence with the thing, what was expected and what
    came. The command line prints it and exits with 2, without a traceback."""
