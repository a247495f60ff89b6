"""The one exception for mistakes that the user can fix."""


class UserError(ValueError):
    """What was got, what was expected and what to do, in one line.

    The command line prints it and exits with 2; library code can catch it as a `ValueError`. Line breaks in quoted
    text, such as another library's error, are removed.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))
