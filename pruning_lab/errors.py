"""The one exception that is written for users rather than for developers."""


class UserError(ValueError):
    """Something the user asked for cannot be done.

    The message says what was wrong (with its value), what is allowed, and what to do. The command
    line prints it without a traceback; a library user may catch it as a ``ValueError``.
    """
