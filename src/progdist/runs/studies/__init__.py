"""The paper's comparisons, each a command that leaves a table, a plot and every measurement behind."""
