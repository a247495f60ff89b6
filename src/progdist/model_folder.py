"""Kept for the code in model cards that version 0.1.0 wrote: `load`, now in `progdist.models.io.folder`."""

from progdist.models.io.folder import load

__all__ = ["load"]
