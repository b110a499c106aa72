"""The one error that users are meant to read."""


class MstlError(ValueError):
    """A problem that the user can mend: its text is one sentence that says what is wrong, where, and what to do next."""
