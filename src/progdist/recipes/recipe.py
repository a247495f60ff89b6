"""The recipe of a run: data, schedule, network, the teacher's training, the chain of stages, evaluation.

Every key except `name`, `data` and `network` has a default. `recipes.files` reads and writes recipes as YAML.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer, model_validator

from progdist._utils.names import Bits, Precision
from progdist.data.samples import is_teacher
from progdist.diffusion.parameterization import PARAMETERIZATIONS
from progdist.methods import METHODS
from progdist.recipes.begun import differences
from progdist.recipes.schema import Data, Evaluation, Network, Noise, Part, one_of
from progdist.recipes.text import leaves
from progdist.recipes.training import Conversion, Distillation, StageTraining, Training, with_defaults
from progdist.training.config import TrainConfig

if TYPE_CHECKING:  # diffusers takes seconds to import, and lists and error messages do not need it
    from progdist.distillation import Plan

Measured = Literal["teacher", "student", "teacher_dpmpp"]
"""The sampled models: the teacher by DDIM, the student distilled for the step count, the teacher by DPM-Solver++."""

SOLVER_STEPS = 3  # the fewest steps at which DPM-Solver++ differs from DDIM, whose first and last step it shares
OF_AN_OPENED_TEACHER = {"model", "offset", "trust", "call", "loras", "config"}  # keys of an existing `teacher`


class Recipe(Part):
    """A run: data, schedule, network, the teacher's training, distillation, evaluation.

    With `lora`, a rank, every student is the text-to-image teacher with LoRA adapters of that rank, and its
    folder also holds these as a file for the teacher's own pipeline (see `progdist.students.folder`). With
    `base_bits`, 8 or 4, they train on a copy of the teacher in that number of bits (see
    `progdist.models.quantized_base`).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    about: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: Data
    noise: Noise = Noise()
    parameterization: Annotated[str, one_of(PARAMETERIZATIONS)] = "v"
    network: Network | None = None
    teacher: Training
    conversion: Conversion
    distill: Distillation
    lora: PositiveInt | None = None
    base_bits: Bits | None = None
    evaluate: Evaluation = Evaluation()
    tracking: Literal["tensorboard", "wandb", "mlflow"] | None = None

    _defaults = model_validator(mode="before")(with_defaults)

    @model_serializer(mode="wrap")
    def _without_idle_section(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """All sections, without stage 0 if the teacher is trained, where it has no effect."""
        return {name: value for name, value in dump(self).items() if name != "conversion" or not self.trains_teacher}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.network is None) == self.trains_teacher:
            raise ValueError("expected either network, to train a teacher, or teacher.model, to use an existing one")
        self._check_trained_teacher() if self.trains_teacher else self._check_opened_teacher()
        if self.lora is not None:
            self._check_lora()
        elif self.base_bits is not None:
            raise ValueError("base_bits requires lora, whose adapters train on that base: set --lora RANK, e.g. 64")
        if self.evaluate.most_steps is not None and self.evaluate.most_steps < self.distill.counts()[-1]:
            raise ValueError(f"evaluate.most_steps {self.evaluate.most_steps} leaves no model of the chain to measure")
        return self

    def _check_trained_teacher(self) -> None:
        if is_teacher(self.data.source):
            raise ValueError(f"data.source {self.data.source} requires teacher.model, the model to sample")
        if self.teacher.offset is not None or self.teacher.trust or self.teacher.call:
            raise ValueError("teacher.offset, teacher.trust and teacher.call require teacher.model")
        if self.teacher.loras or self.teacher.config is not None:
            raise ValueError("teacher.loras and teacher.config require teacher.model")
        if self.distill.initial is not None:
            raise ValueError("distill.initial requires teacher.model, its teacher")
        if self.teacher.lora_rank:
            raise ValueError("teacher.lora_rank has no effect, because a teacher is trained whole: remove it")
        if changed := self._changed("conversion", ()):
            raise ValueError(f"conversion.{changed[0]} requires teacher.model: stage 0 converts that teacher")
        for count in self.distill.counts():
            table = self.noise.num_train_timesteps
            if table % count and count % table:
                raise ValueError(
                    f"noise.num_train_timesteps is {table}, expected a multiple of the chain's {count} steps, so that "
                    f"stock samplers visit the same times: set e.g. {max(self.distill.counts())}"
                )

    def _check_opened_teacher(self) -> None:
        if self.noise != Noise() or self.parameterization != "v":
            raise ValueError("noise and parameterization are those of teacher.model: remove them")
        if changed := self._changed("teacher", OF_AN_OPENED_TEACHER):
            raise ValueError(f"teacher.{changed[0]} applies only to a teacher that is trained: remove it")

    def _check_lora(self) -> None:
        if self.trains_teacher:
            raise ValueError("lora requires teacher.model, the pipeline that loads the file")
        if self.conversion.zero_terminal_snr is not None:
            raise ValueError("lora keeps the schedule of the teacher's pipeline: remove conversion.zero_terminal_snr")
        if self.distill.initial is not None:
            raise ValueError("distill.initial applies only to whole networks: remove it, or lora")
        for name in ("conversion", "distill"):
            if getattr(self, name).lora_rank:
                raise ValueError(f"lora is the rank of every stage: remove {name}.lora_rank")

    def _changed(self, section: Literal["teacher", "conversion"], without: Collection[str]) -> list[str]:
        """The keys of a section that differ from their defaults, without the given ones."""
        default, current = with_defaults({"distill": asdict(self.distill)})[section], getattr(self, section)
        expected = type(current)(**default)
        return [
            name
            for name in asdict(current)
            if name not in without and getattr(current, name) != getattr(expected, name)
        ]

    @property
    def trains_teacher(self) -> bool:
        """Whether the teacher is trained; otherwise it is `teacher.model`."""
        return self.teacher.model is None

    @property
    def prepares_teacher(self) -> bool:
        """Whether the teacher is prepared in a folder before it is opened (see `progdist.teachers.prepared`)."""
        return bool(self.teacher.loras) or self.teacher.config is not None

    def plan(self) -> "Plan":
        """The plan of the distillation."""
        from progdist.distillation import Plan

        conversion, distill = self.conversion, self.distill
        first = conversion.overridden() if self.lora is None else conversion.overridden(lora_rank=self.lora)
        return Plan(
            chain=tuple(distill.counts()),
            stages={link.steps: self.student_config(link.steps) for link in distill.links()},
            conversion=first,
            method=METHODS[distill.method],
            options={link.steps: distill.method_options(link) for link in distill.links()},
            weightings=(conversion.weighting, distill.weighting),
            guidance=conversion.guidance,
            null_class=conversion.null_class,
            negative=conversion.negative,
            zero_terminal_snr=conversion.zero_terminal_snr,
            lora=self.teacher.model if self.lora is not None else None,
            base_bits=self.base_bits,
            stop=distill.stop,
            seed=self.seed,
        )

    def student_config(self, steps: int) -> TrainConfig:
        """The training of the student of `steps` steps."""
        link = next(link for link in self.distill.links() if link.steps == steps)
        config = self.distill.train_config(link)
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
        """The section whose keys change the training of one model of the run."""
        if name in ("teacher", "converted"):
            return "teacher" if self.trains_teacher else "conversion"
        return f"distill.stages.{int(name.removeprefix('student-'))}"

    def model_names(self, *, stage_0: bool = True) -> list[str]:
        """The models in order: the chain's first teacher, `converted` if there is a stage 0, and every student."""
        first = "teacher" if self.trains_teacher or not stage_0 else "converted"
        return [first, *(student_name(link.steps) for link in self.distill.links())]

    def train_configs(self, *, stage_0: bool = True) -> dict[str, TrainConfig]:
        """The training of each of `model_names`."""
        plan = self.plan()
        first = self.teacher.overridden() if self.trains_teacher else plan.conversion
        return dict(zip(self.model_names(stage_0=stage_0), [first, *plan.stages.values()], strict=True))

    def precisions(self) -> dict[str, Precision]:
        """The precision of every section that has one and is used."""
        names = ("teacher" if self.trains_teacher else "conversion", "distill", "evaluate")
        return {name: getattr(self, name).precision for name in names}

    def with_precisions(self, precisions: Mapping[str, Precision]) -> "Recipe":
        """The recipe with the precision of some sections replaced."""
        parts: dict[str, Any] = {name: getattr(self, name) for name in precisions}
        for name, part in parts.items():
            change = {"precision": precisions[name]}
            parts[name] = part.model_copy(update=change) if isinstance(part, Part) else replace(part, **change)
        return self.model_copy(update=parts)

    def changed_under_way(self, old: "Recipe", name: str) -> list[str]:
        """The keys that no stage can override and that would change a half-trained model of `old`."""
        section = self.section_of(name).partition(".")[0]
        how = {"start", "end", "substeps", "chain", "stages", *StageTraining.model_fields}
        new, before = (asdict(getattr(recipe, section)) for recipe in (self, old))
        return [f"{section}.{key}" for key in new if key not in how and new[key] != before[key]]

    def difference(self, old: "Recipe") -> str:
        """The keys in which this recipe differs from an old one, at most three, with the old values."""
        new, before = (dict(leaves(each.model_dump(), lists=False)) for each in (self, old))
        return differences(before, new, [key for key in {**before, **new} if new.get(key) != before.get(key)])

    def continues(self, old: "Recipe", finished: Collection[str]) -> bool:
        """Whether a run of `old`, with these models finished, can resume: only the training of others has changed."""
        trained = {name: getattr(self, name) for name in ("teacher", "conversion", "distill", "tracking")}
        if old.model_copy(update=trained) != self or old.distill.counts() != self.distill.counts():
            return False
        first, before = ((each.teacher, replace(each.conversion, updates=1)) for each in (self, old))
        if {"teacher", "converted"} & set(finished) and first[: 2 - self.trains_teacher] != before[
            : 2 - self.trains_teacher
        ]:
            return False
        students = [stage for stage in self.distill.links() if student_name(stage.steps) in finished]
        same_configs = all(
            getattr(old.distill, how)(stage) == getattr(self.distill, how)(stage)
            for stage in students
            for how in ("train_config", "method_options")
        )
        same_kind = all(
            getattr(old.distill, key) == getattr(self.distill, key)
            for key in ("method", "initial", "weighting", "stop")
        )
        return same_configs and (not students or same_kind)


def student_name(steps: int) -> str:
    """The name of the student of `steps` steps, and of its folder in a run."""
    return f"student-{steps:04d}"
