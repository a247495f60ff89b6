"""Where teachers come from: folders of ours and of stock diffusers, and the paper's JAX checkpoints."""

from progdist.teachers.edm import EDM
from progdist.teachers.flow import FLOW
from progdist.teachers.schedulers import TABLE, SchedulerKind
from progdist.teachers.score import SCORE

SCHEDULERS: list[SchedulerKind] = [TABLE, FLOW, EDM, SCORE]
"""Every kind of stock scheduler: the one list used to open teachers and write students."""
