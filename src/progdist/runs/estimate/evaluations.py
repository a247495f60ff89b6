"""What a run asks of networks without training them: of teachers while students train, and of all that is measured.

A guided teacher takes two evaluations for one, and so does the target `tract` for a stage of any length: one of the
teacher, and one of the student's own average.
"""

from progdist.recipes.recipe import Recipe, student_name


def frozen_evaluations(recipe: Recipe, *, guided: bool) -> dict[str, int]:
    """Network evaluations of frozen models for one example of an update, by the model in training, in order.

    Args:
        recipe: of the run.
        guided: whether the given teacher is guided.
    """
    found = {"teacher": _given_evaluations(recipe, guided)}
    for link in recipe.distill.links():
        found[student_name(link.steps)] = 2 if recipe.distill.target == "tract" else link.substeps
    return found


def sampling_evaluations(recipe: Recipe, *, guided: bool) -> dict[tuple[str, int], int]:
    """Network evaluations of one sample, by (model, steps) of every measurement; arguments as of the one above."""
    measurements = recipe.measurements()
    found: dict[tuple[str, int], int] = {(name, steps): steps for name, steps in measurements}
    if given := _given_evaluations(recipe, guided):
        found["given", measurements[0][1]] = given * measurements[0][1]
    return found


def _given_evaluations(recipe: Recipe, guided: bool) -> int:
    """Those of one prediction of the given teacher; 0 where one is trained."""
    return int(recipe.teacher.model is not None) * (2 if guided else 1)
