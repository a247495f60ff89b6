"""The one exception for mistakes that the person at the keyboard can fix."""


class UserError(ValueError):
    """What was got, what was expected and what to do, in one line.

    The command line prints it and exits with 2; a library user catches it as a `ValueError`. What a message quotes, as
    a library's error or a name, may have several lines: they become one.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))
