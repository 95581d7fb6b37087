"""The one exception of this library."""


class RankspaceError(ValueError):
    """A wrong model, file, shape or call. `str(error)` is one line that says what is wrong and how to fix it."""
