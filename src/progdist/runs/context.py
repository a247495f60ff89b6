"""The shared context of a run: its recipe and plan, data and teacher, folder, processes, and conditions."""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from torch import Tensor

from progdist.data.embeddings import Embeddings, encode_captions
from progdist.data.images import Images
from progdist.distillation import Plan, with_guidance
from progdist.methods.guidance import Input
from progdist.models.conditioning import Conditions
from progdist.models.model import Model
from progdist.models.prompts import Prompts
from progdist.recipes.recipe import Recipe
from progdist.runs.folder import RunFolder
from progdist.runs.teacher_samples import TeacherSamples
from progdist.teachers.open import Teacher
from progdist.teachers.own import load
from progdist.training.callbacks import Callback
from progdist.training.distributed import Distributed


@dataclass(frozen=True)
class RunContext:
    """One recipe in one folder."""

    recipe: Recipe  # with every `auto` resolved
    images: Images  # the data set
    opened: Teacher | None  # the teacher as opened; None if one is trained
    folder: RunFolder  # the run's folder
    callback: Callback  # called on every event
    distributed: Distributed  # the processes
    samples: TeacherSamples | None = None  # the teacher's own samples, if they are the data
    fresh: bool = False  # start over: the run in the folder is moved aside once everything is checked

    def finished(self, name: str) -> bool:
        """Whether a model is finished, as the first process sees it."""
        return not self.fresh and self.distributed.on_main_process(self.folder.model(name).exists)

    @cached_property
    def plan(self) -> Plan:
        """What is distilled, and how."""
        plan, initial = self.recipe.plan(), self.recipe.distill.initial
        if plan.lora is not None and self.recipe.prepares_teacher:
            plan = replace(plan, lora=str(self.folder.base()))  # the adapters belong to the prepared teacher
        return plan if initial is None else replace(plan, initial=load(Path(initial)).denoiser)

    @cached_property
    def teacher(self) -> Teacher | None:
        """The teacher with its null class or negative prompt, required for guidance; None if one is trained."""
        if self.opened is None:
            return None
        return with_guidance(self.plan, self.opened, len(self.images.classes), self.callback.note)

    @property
    def has_stage_0(self) -> bool:
        """Whether the teacher is converted."""
        return self.opened is not None and self.plan.converts(self.opened.model)

    @property
    def model_names(self) -> list[str]:
        """Names of the run's models in order: the chain's first teacher, and every student."""
        return self.recipe.model_names(stage_0=self.has_stage_0)

    @property
    def guidance(self) -> Input | None:
        """The range of guidance scales that students take as an input; None without a guidance input."""
        guidance = self.plan.learned(self.opened.model) if self.opened else None
        return guidance if isinstance(guidance, Input) else None

    @property
    def measured_scale(self) -> float | None:
        """The guidance scale at which models are measured; None without a guidance input."""
        if self.guidance is None or self.opened is None:
            return None
        if self.recipe.evaluate.guidance is not None:
            return self.recipe.evaluate.guidance
        return self.guidance.nearest(self.opened.model.conditioning.default_guidance)

    def labels(self, count: int) -> Tensor:
        """Labels or caption numbers of samples, (count,): with the data's frequencies, never the null class."""
        conditioning = self.teacher.model.conditioning if self.teacher else None
        if conditioning is None or not conditioning.shares:
            return self.images.stratified_labels(count)
        return conditioning.drawn(count)

    def conditions(self, model: Model, scale: float | None = None) -> Conditions:
        """The inputs of a model's network for the data's examples, at a guidance scale; None for the measured one."""
        scale = self.measured_scale if scale is None else scale
        return model.conditioning.of_images(model.denoiser.network, scale, self.images.shape, lambda: self._embeddings)

    @cached_property
    def _embeddings(self) -> Embeddings:
        """Embeddings of the data's captions, encoded once, on first use."""
        assert self.opened is not None
        prompts = self.opened.model.conditioning
        assert isinstance(prompts, Prompts)  # a text-to-image model has its teacher's encoders
        open_encoder = partial(prompts.encoder, self.distributed.device)
        captions, cache, note = self.images.classes, self.folder.root / "captions", self.callback.note
        made_by = self.distributed.on_main_process(prompts.fingerprint)
        self.distributed.on_main_process(lambda: encode_captions(captions, open_encoder, cache, note, made_by).size)
        return encode_captions(captions, open_encoder, cache, note, made_by)
