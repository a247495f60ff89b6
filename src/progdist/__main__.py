"""`python -m progdist`."""

from progdist.cli import start

start()
