"""Tiny stock pipelines of many classes, their weights random: benchmarks/tools/tiny_pipelines.py."""

from tiny_pipelines import BUILDERS, CALLS, NOT_BUILT, PROMPTS, build, load, prompted, sampled, usable

__all__ = ["BUILDERS", "CALLS", "NOT_BUILT", "PROMPTS", "build", "load", "prompted", "sampled", "usable"]
