"""What a run is: data, schedule, network, the teacher's training, the chain of stages, evaluation.

Every key has a default but `name`, `data` and `network`. `recipes.files` reads and writes recipes as YAML.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from progdist._utils.names import Precision
from progdist.methods.chain import Stage
from progdist.recipes.schema import Data, Evaluation, Network, Noise, Part
from progdist.recipes.training import Conversion, Distillation, StageTraining, Training, train_config
from progdist.training.config import TrainConfig

Measured = Literal["teacher", "student", "teacher_dpmpp"]
"""What is sampled: the teacher by DDIM, the student distilled for the step count, the teacher by DPM-Solver++."""

SOLVER_STEPS = 3
"""The fewest steps at which DPM-Solver++ is not DDIM, whose first and last step it shares."""


class Recipe(Part):
    """A run: data, schedule, network, the teacher's training, distillation, evaluation.

    With `lora`, a rank, every student is the given text-to-image teacher with LoRA adapters of that rank, and its
    folder holds these as a file for the teacher's own pipeline, too (see `progdist.students.lora_file`).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    about: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: Data
    noise: Noise = Noise()
    parameterization: Literal["x", "eps", "v", "velocity", "x_eps"] = "v"
    network: Network | None = None
    teacher: Training = Training()
    conversion: Conversion = Conversion()
    distill: Distillation = Distillation()
    lora: PositiveInt | None = None
    evaluate: Evaluation = Evaluation()
    tracking: Literal["tensorboard", "wandb", "mlflow"] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.network is None) == (self.teacher.model is None):
            raise ValueError("give either network, to train a teacher, or teacher.model, to take one")
        if self.teacher.model is None and (self.teacher.offset is not None or self.teacher.trust):
            raise ValueError("teacher.offset and teacher.trust are of a teacher.model that is taken, and there is none")
        if self.teacher.model is not None and (self.noise != Noise() or self.parameterization != "v"):
            raise ValueError("noise and parameterization are those of teacher.model: leave them out")
        if self.teacher.model is None and _changed(self.conversion, ()):
            raise ValueError("conversion is stage 0 of a teacher.model that is taken, and there is none: leave it out")
        if self.teacher.model is not None and (given := _changed(self.teacher, {"model", "offset", "trust"})):
            raise ValueError(
                f"teacher.{given[0]} is of a teacher that is trained, and teacher.model is taken: leave it out"
            )
        if self.lora is not None:
            self._check_lora()
        if self.evaluate.most_steps is not None and self.evaluate.most_steps < self.distill.counts()[-1]:
            raise ValueError(f"evaluate.most_steps {self.evaluate.most_steps} leaves no model of the chain to measure")
        for count in self.distill.counts() if self.network else ():
            if self.noise.timesteps % count and count % self.noise.timesteps:
                raise ValueError(
                    f"noise.timesteps {self.noise.timesteps} is no multiple of the chain's {count} steps, so stock "
                    f"samplers would visit other times: set noise.timesteps to one, e.g. {max(self.distill.counts())}"
                )
        return self

    def _check_lora(self) -> None:
        if self.teacher.model is None:
            raise ValueError("lora is of a teacher.model that is taken, whose pipeline loads the file: leave it out")
        if isinstance(self.conversion.guidance, tuple):
            raise ValueError(
                "a range of guidance is an input that the teacher's own pipeline lacks, and lora makes a file for it: "
                "give a single scale, or leave lora"
            )
        if self.conversion.zero_terminal_snr is not None:
            raise ValueError("lora keeps the schedule of the teacher's pipeline: leave conversion.zero_terminal_snr")
        for name in ("conversion", "distill"):
            if getattr(self, name).lora_rank:
                raise ValueError(f"lora is the rank of every stage: leave {name}.lora_rank")

    def conversion_config(self) -> TrainConfig:
        """How stage 0 is trained."""
        return self._low_rank(train_config(self.conversion))

    def student_config(self, link: Stage) -> TrainConfig:
        """How the student of one stage is trained."""
        return self._low_rank(self.distill.train_config(link))

    def _low_rank(self, config: TrainConfig) -> TrainConfig:
        return config if self.lora is None else replace(config, lora_rank=self.lora)

    def measurements(self) -> list[tuple[Measured, int]]:
        """(model, steps) of every measurement, in order; the first is the reference."""
        counts = self.distill.counts()
        most = self.evaluate.most_steps or counts[0]
        wanted: list[tuple[Measured, int]] = [("teacher", next(c for c in counts if c <= most))]
        for number, count in enumerate(counts[1:], 1):
            if count <= most:
                wanted.append(("student", count))
                if number % self.evaluate.teacher_every == 0 and ("teacher", count) not in wanted:
                    if self.evaluate.solver and count >= SOLVER_STEPS:
                        wanted.append(("teacher_dpmpp", count))
                    wanted.append(("teacher", count))
        return wanted

    def section_of(self, name: str) -> str:
        """The section whose keys say how a model of the run is trained, and change it alone."""
        if name == "teacher":
            return "teacher" if self.teacher.model is None else "conversion"
        return f"distill.stages.{int(name.removeprefix('student-'))}"

    def model_names(self) -> list[str]:
        """The names of its models in order: the teacher, and every student."""
        return ["teacher", *(student_name(link.steps) for link in self.distill.links())]

    def train_configs(self) -> list[TrainConfig]:
        """How each of `model_names` is trained: the teacher, in stage 0 if it is taken, and the students."""
        first = train_config(self.teacher) if self.teacher.model is None else self.conversion_config()
        return [first, *(self.student_config(link) for link in self.distill.links())]

    def precisions(self) -> dict[str, Precision]:
        """The precision of every section that has one and is used."""
        names = ("teacher" if self.teacher.model is None else "conversion", "distill", "evaluate")
        return {name: getattr(self, name).precision for name in names}

    def with_precisions(self, precisions: Mapping[str, Precision]) -> "Recipe":
        """The recipe with the precision of some sections replaced."""
        parts = {name: getattr(self, name) for name in precisions}
        return self.model_copy(
            update={name: part.model_copy(update={"precision": precisions[name]}) for name, part in parts.items()}
        )

    def changed_under_way(self, old: "Recipe", name: str) -> list[str]:
        """The keys in which a model of `old` that is half trained would go on as another one.

        None may differ but those that a stage of the chain has of its own, which say how it is trained, not on what.
        """
        section = "distill" if name != "teacher" else self.section_of(name)
        apart = {"start", "end", "substeps", "chain", "stages", *StageTraining.model_fields}
        new, before = (getattr(recipe, section).model_dump(exclude=apart) for recipe in (self, old))
        return [f"{section}.{key}" for key in new if new[key] != before[key]]

    def continues(self, old: "Recipe", finished: Collection[str]) -> bool:
        """Whether a run of `old` can go on under this recipe: it changes only how models yet to be finished train."""
        trained = {name: getattr(self, name) for name in ("teacher", "conversion", "distill", "tracking")}
        same_chain = old.distill.counts() == self.distill.counts()
        if old.model_copy(update=trained) != self or not same_chain:
            return False
        if "teacher" in finished and (old.teacher, old.conversion) != (self.teacher, self.conversion):
            return False
        students = [stage for stage in self.distill.links() if student_name(stage.steps) in finished]
        same_configs = all(old.distill.train_config(stage) == self.distill.train_config(stage) for stage in students)
        same_kind = all(
            getattr(old.distill, key) == getattr(self.distill, key) for key in ("target", "weighting", "stop")
        )
        return same_configs and (not students or same_kind)


def _changed(part: Part, without: Collection[str]) -> list[str]:
    """The keys of a section that are not at their defaults, but for some; earlier versions wrote float32 everywhere."""
    usual: dict[str, tuple[object, ...]]
    usual = {name: (field.get_default(call_default_factory=True),) for name, field in type(part).model_fields.items()}
    usual["precision"] = ("auto", "float32")
    return [name for name in usual if name not in without and getattr(part, name) not in usual[name]]


def student_name(steps: int) -> str:
    """The name of the student of so many steps, and of its folder in a run."""
    return f"student-{steps:04d}"
