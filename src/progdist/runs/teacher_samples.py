"""The teacher's own samples as a run's data: made once by all processes and kept in `teacher_samples/` of the run.

Sample n is the teacher's DDIM sample, in N steps, of noise that is a function of (seed, n),

    x_n = sample(teacher, eps_n, N, c_n, g_n),    eps_n ~ N(0, I)

of class or prompt c_n, guided and limited as in distillation, in the network's own space: latents are not decoded.
Classes have the teacher's frequencies; prompts are used in turn. If students take the guidance scale as an input, every
sample has its own scale g_n, drawn as in training, because a student is called at every scale of the range on noisy
samples of that scale.

A shard is sampled as one batch and written whole. An interrupted run therefore resumes with the missing shards and ends
with the same samples, for any number of processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from progdist._utils.digest import digest, digest_of_state
from progdist._utils.errors import UserError
from progdist._utils.names import Precision
from progdist._utils.random import TEACHER_SAMPLES, RowGenerator, seeds
from progdist._utils.words import any_of
from progdist.compute.placement import at_work
from progdist.compute.precision import autocast
from progdist.data.images import CaptionedImages, Images
from progdist.data.samples import SampledImages, Samples, in_words, read_prompts, sample_count
from progdist.data.shards import TensorShards
from progdist.diffusion.denoiser import DenoiserProtocol
from progdist.diffusion.sampler import sample
from progdist.distillation import Plan, with_guidance
from progdist.evaluation.generate import check_images_finite
from progdist.methods.guidance import Input
from progdist.models.conditioning import Conditions
from progdist.models.model import Model
from progdist.models.networks import image_shape
from progdist.models.prompts import Prompts
from progdist.recipes.recipe import Recipe
from progdist.teachers.open import Teacher
from progdist.training.distributed import Distributed

MOST_STEPS = 64  # upper limit of the default step count
Notify = Callable[[str], None]


def sampling_steps(recipe: Recipe, teacher: Model) -> int:
    """The sampling steps of the teacher: `data.steps`, its own, or a divisor of the chain's first count.

    Raises a UserError for steps at which a stock sampler visits other times, or that a distilled teacher did not learn.
    """
    steps, first = recipe.data.steps, recipe.distill.counts()[0]
    if steps is None:
        return first if teacher.steps else max(n for n in range(1, MOST_STEPS + 1) if first % n == 0)
    if teacher.steps and steps not in teacher.steps:
        raise UserError(
            f"data.steps is {steps}, expected {any_of(teacher.steps, 'step')}, for which the teacher was distilled: "
            "change or remove it"
        )
    if (table := teacher.denoiser.num_train_timesteps) % steps and table != 1:
        raise UserError(f"data.steps is {steps}, expected a divisor of the teacher's {table} timesteps")
    return steps


def open_samples(recipe: Recipe, teacher: Teacher, root: Path, device: torch.device) -> "TeacherSamples":
    """Describe the samples of a recipe's teacher on a device, in a run's folder; nothing is sampled or written.

    Raises:
        UserError: prompts for a teacher that takes none, or none for one that does; a size for a network of one size;
            or as in `Plan.check`, `sampling_steps` and `read_prompts`.
    """
    plan, data = recipe.plan(), recipe.data
    plan.check(teacher.model)
    model, count = with_guidance(plan, teacher).model, sample_count(data.source)
    prompts, notes = read_prompts(data.prompts) if data.prompts is not None else ((), ())
    if model.conditioning.takes_prompts and not prompts:
        raise UserError("a text-to-image teacher requires prompts: pass a text file with one per line, --prompts FILE")
    if prompts and not model.conditioning.takes_prompts:
        raise UserError(
            f"data.prompts applies only to text-to-image teachers, got {model.conditioning.describe()}: remove it"
        )
    if data.size is not None and (image_shape(model.denoiser.network) or model.image[1:] != (data.size, data.size)):
        raise UserError(f"data.size is {data.size}, but the teacher makes images of {model.image}: remove it")
    count = len(prompts) if count is None else count
    if 0 < count < len(prompts):
        notes += (f"{data.prompts}: the first {count:,} of {len(prompts):,} prompts are used",)
    stated = data.model_copy(update={"source": f"teacher:{count}", "steps": sampling_steps(recipe, teacher.model)})
    recipe = recipe.model_copy(update={"data": stated})
    return TeacherSamples(recipe, teacher, model, plan, root / "teacher_samples", device, prompts[:count], notes)


@dataclass(frozen=True)
class TeacherSamples:
    """The samples of one run's teacher."""

    recipe: Recipe  # with explicit count and steps
    teacher: Teacher  # as opened
    model: Model  # the teacher's model, with its null class or negative prompt
    plan: Plan  # the distillation
    folder: Path  # folder of the shards
    device: torch.device  # device for sampling and decoding
    prompts: Sequence[str] = ()  # used in turn; empty if the teacher takes none
    notes: Sequence[str] = ()  # messages on ignored prompts

    @property
    def count(self) -> int:
        """Number of samples."""
        return sample_count(self.recipe.data.source) or 0

    @property
    def steps(self) -> int:
        """Sampling steps."""
        return self.recipe.data.steps or 0

    @property
    def name(self) -> str:
        """The samples in words."""
        return in_words(self.count)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The distinct prompts, or the names of the teacher's classes."""
        return tuple(dict.fromkeys(self.prompts)) or self.model.classes

    @cached_property
    def labels(self) -> Tensor:
        """The number (N,) of each sample's class or distinct prompt."""
        drawn = self.model.conditioning.drawn(self.count, self.prompts)
        if not self.prompts:
            return drawn
        places = {prompt: place for place, prompt in enumerate(self.classes)}
        return torch.tensor([places[prompt] for prompt in self.prompts])[drawn]

    @property
    def guidance(self) -> Input | None:
        """The range from which each sample's scale is drawn; None if none is drawn."""
        learned = self.plan.learned(self.teacher.model)
        return learned if isinstance(learned, Input) else None

    @property
    def evaluations(self) -> int:
        """Network evaluations per sample."""
        return self.steps * (2 if self.plan.guides(self.teacher.model) else 1)

    @cached_property
    def shards(self) -> TensorShards:
        """The samples, one batch per shard."""
        return TensorShards(self.folder, self.count, self.recipe.evaluate.batch)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of these samples: of the teacher, and how it is sampled."""
        model, denoiser = self.teacher.model, self.teacher.model.denoiser
        conditioning = self.model.conditioning
        inputs = (
            (conditioning.fingerprint(), conditioning.negative) if isinstance(conditioning, Prompts) else conditioning
        )
        how = (denoiser.schedule, denoiser.parameterization.name, denoiser.num_train_timesteps, denoiser.offset)
        return digest(
            digest_of_state(denoiser.network.state_dict()), how, self.teacher.limits, inputs, model.shape,
            (self.plan.guidance, self.guidance), (self.steps, self.recipe.seed),
            (self.classes, self.count), self.labels,
        )  # fmt: skip

    def examples(self) -> Samples:
        """The training examples of the students, once they are made."""
        return Samples(self.shards.__getitem__, self.model.shape, self.labels)

    def images(self) -> Images:
        """The images to measure: the samples, decoded if they are latents; each is read on access."""
        kind, labels = CaptionedImages if self.prompts else Images, self.labels if self.classes else None
        get = SampledImages(self.shards, self._decoded, lambda: self.fingerprint)
        return kind(self.name, self.count, get, labels, self.classes, shape=self.model.image, notes=self.notes)

    def make(
        self,
        predictions: DenoiserProtocol,
        conditions: Conditions,
        precision: Precision,
        distributed: Distributed,
        notify: Notify,
    ) -> None:
        """Make the missing samples, in all processes.

        Args:
            predictions: the teacher's predictions, guided and limited as in distillation.
            conditions: inputs of its network for the numbers of classes or prompts.
            precision: precision of the network.
            distributed: the processes; each makes its share of the shards.
            notify: called with a line before, and after each tenth.

        Raises:
            UserError: samples that are not finite, or a damaged folder.
        """
        if not (absent := distributed.on_main_process(lambda: self._begin(notify))):
            return
        notify(f"sampling {self.name} once, in {self.steps} steps each")

        def write(process: int, processes: int) -> None:
            for number in absent[process::processes]:
                rows = self.shards.spans()[number]
                noise, batch = self._drawn(rows)
                with autocast(self.device, precision):
                    made = sample(
                        predictions, noise, self.steps, method="ddim", clip=False, generator=None, **conditions(batch)
                    )
                made = made.float().cpu()
                check_images_finite(made, rows.start)
                self.shards.write(number, [made])
                self._report(notify)

        with self.model.at_work(self.device, precision):
            distributed.on_every_process(write)

    def _begin(self, notify: Notify) -> list[int]:
        """Prepare the folder for these samples; returns the missing shards."""
        shards = self.shards
        if TensorShards(self.folder, shards.count, shards.rows, self.fingerprint).begin():
            notify(f"{self.folder} had samples of another teacher or other settings: made again")
        return shards.absent()

    def _report(self, notify: Notify) -> None:
        """Report the count if this shard completed another tenth."""
        whole, left = len(self.shards.spans()), len(self.shards.absent())
        if (whole - left) * 10 // whole > (whole - left - 1) * 10 // whole:
            notify(f"samples of the teacher: {min(self.count, (whole - left) * self.shards.rows):,} of {self.count:,}")

    def _drawn(self, rows: range) -> tuple[Tensor, dict[str, Tensor]]:
        """The noise (B, ...) of some samples by number, and their conditions: `labels`, and perhaps `guidance`."""
        noise = RowGenerator((self.recipe.seed, TEACHER_SAMPLES), rows).normal(
            torch.empty(len(rows), *self.model.shape)
        )
        batch = {"labels": self.labels[rows.start : rows.stop].to(self.device)}
        if self.guidance:
            draws, row_generator = seeds(rows, self.recipe.seed, TEACHER_SAMPLES, SCALES), torch.Generator()
            scales = [self.guidance.draw(row_generator.manual_seed(seed)) for seed in draws]
            batch["guidance"] = torch.stack(scales).to(self.device)
        return noise.to(self.device), batch

    def _decoded(self, samples: Tensor) -> Tensor:
        """Decode samples (B, ...) to images, on the device."""
        autoencoder = self.model.autoencoder
        if autoencoder is None:
            return samples
        with at_work(autoencoder.network, self.device):
            return autoencoder.decode(samples)


SCALES = 1  # stream of the scales' random numbers, after that of the noise
