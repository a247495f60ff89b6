"""The one exception for mistakes that the person at the keyboard can fix."""


class UserError(ValueError):
    """What was got, what was expected and what to do, in one line.

    The command line prints it and exits with 2; a library user catches it as a `ValueError`.
    """
