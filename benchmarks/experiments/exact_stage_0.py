"""What zero terminal SNR does: the teacher's own predictions, sampled on a student's schedule that ends in pure noise.

    python benchmarks/experiments/exact_stage_0.py digits captions:runs/digits-captions runs/stock-text \
        [--steps 40] [-n 500]

With `conversion.zero_terminal_snr=true` the student of a text-to-image teacher predicts at time t what the guided
teacher predicts at the time of the same signal-to-noise ratio; here without any error. Accuracy and distances as in
`text_teacher.py`, by guidance scale.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from progdist.diffusion.schedule import Schedule
from progdist.evaluation.generate import SamplingOptions, sample_in_batches
from progdist.methods.conversion import equal_snr, student_form
from progdist.methods.guidance import Guided
from progdist.teachers.open import open_teacher
from text_teacher import Measure, argument_parser, open_data


@dataclass(frozen=True)
class ExactStage0:
    """The student of stage 0 that makes no error.

    Attributes:
        guided: the teacher's predictions.
        schedule: the student's.
    """

    guided: Guided
    schedule: Schedule

    def __call__(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """xh for latents z (B, ...) at times t, and a condition of B rows: the teacher's at the time of equal SNR."""
        return self.guided(z, equal_snr(self.schedule, self.guided.schedule, t), **condition)


def main() -> None:
    """Print a table."""
    parser = argument_parser(__doc__)
    parser.add_argument("teacher", help="its folder")
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    images, real, _, named_by = open_data(arguments.data, arguments.classifier)
    wanted, measure = images.stratified_labels(arguments.n), Measure.of(arguments.classifier, real)
    model = open_teacher(arguments.teacher).model
    conditioning = model.conditioning.for_guidance(negative=None, null_class=None)
    guided = Guided(model.denoiser, conditioning.unconditional(torch.device("cpu")))
    exact = ExactStage0(guided, student_form(model.denoiser, guided=True, zero_terminal_snr=True).schedule)
    options = SamplingOptions(arguments.steps, batch=100)
    noise = torch.randn(arguments.n, *model.shape, generator=torch.Generator().manual_seed(1))
    print("| guidance | accuracy | pixels (95 %) | features (95 %) |\n|---:|---:|---|---|")
    for guidance in arguments.guidance:
        conditions = conditioning.conditions(model.denoiser.network, guidance, images.classes)
        made = sample_in_batches(model, noise, wanted, options, conditions=conditions, denoiser=exact).clamp(-1, 1)
        print(f"| {guidance:g} | {measure.row(made, named_by[wanted])} |", flush=True)


if __name__ == "__main__":
    main()
