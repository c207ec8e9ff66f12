"""Exceptions that the command line turns into one sentence."""


class UserError(ValueError):
    """A mistake in what the user gave us: one sentence with the thing, what was expected and what
    came. The command line prints it and exits with 2, without a traceback."""


class OtherRankError(UserError):
    """As a `UserError`, on a rank that leaves the sentence to another."""
