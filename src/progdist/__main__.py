"""`python -m progdist`."""

from progdist.cli.app import start

start()
