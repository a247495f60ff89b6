"""The chain of step counts: 256 -> 128 -> ... -> 1, or any other in which each count divides the previous one.

A link of the chain is a stage: a teacher of k N steps and its student of N steps, which becomes the next teacher
(paper, Algorithm 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral

from progdist._utils.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One link of the chain: a teacher of `substeps * steps` steps becomes a student of `steps`."""

    steps: int
    substeps: int


def halvings(start: int, end: int, substeps: int = 2) -> list[int]:
    """[start, start / k, ..., end], e.g. 256 and 4 give [256, 128, ..., 4]. Raise a UserError where k misses `end`."""
    chain = [start]
    while chain[-1] > end and substeps > 1 and chain[-1] % substeps == 0:
        chain.append(chain[-1] // substeps)
    if chain[-1] != end or end < 1 or start == end:
        raise UserError(
            f"dividing {start} steps by {substeps} repeatedly does not reach {end}: choose a start that is {end} "
            f"times a power of {substeps}, or pass the chain as a list"
        )
    return chain


def stages(chain: Sequence[int]) -> list[Stage]:
    """The links of a chain of step counts; any whole ratio is legal, e.g. 1000, 500, 250, 125, 25, 5, 1.

    Raises:
        UserError: fewer than two counts, one that is not an integer, or one that is not a multiple of the next.
    """
    if not isinstance(chain, Sequence) or isinstance(chain, str):
        raise UserError(f"chain is {str(chain)[:50]!r}, expected step counts in a list: e.g. [64, 32, 16]")
    if odd := [count for count in chain if not isinstance(count, Integral) or isinstance(count, bool)]:
        raise UserError(f"chain has {odd[0]!r}, expected whole numbers of steps: e.g. [64, 32, 16]")
    if len(chain) < 2:
        raise UserError(f"chain {list(chain)} has no stage, expected the teacher's steps and at least one student's")
    for teacher, student in pairwise(chain):
        if student < 1 or teacher <= student or teacher % student:
            raise UserError(
                f"chain {list(chain)}: {teacher} teacher steps are not a multiple of {student} student steps; "
                "each count must divide the previous one"
            )
    return [Stage(int(student), int(teacher // student)) for teacher, student in pairwise(chain)]
