"""Pages for people: the report of a run, live while it goes on, and a page to play with its models."""
