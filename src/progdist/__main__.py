"""`python -m progdist` and the command `progdist`: signals are handled before anything slow is imported."""

import signal
import sys

from progdist._utils.signals import Interrupted, interruptible


def main() -> None:
    """The entry point; a signal ends it in one line, whenever it comes."""
    try:
        with interruptible():
            from progdist.cli.app import start

            start()
    except Interrupted as stop:
        sys.stderr.write(f"progdist: stopped by {stop}.\n")
        sys.exit(128 + stop.number)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what is left to do is Python's own: no traceback from there


if __name__ == "__main__":
    main()
