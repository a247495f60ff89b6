"""Web pages: the report of a run, live during the run, and a page to play with its models."""
