r"""Scores of samples that do not use the data.

The Inception Score (Salimans et al. 2016, arXiv 1606.03498), under any classifier:

    exp(mean KL(p(y | x) || p(y))) = exp(H(mean p(y | x)) - mean H(p(y | x))),     p(y) the mean of p(y | x)

in ten parts of the samples in random order, of which papers report mean and deviation. Part i starts at sample
i n // 10, as in the first implementation and torch-fidelity; torchmetrics' parts differ if 10 does not divide n.
For Inception p is the softmax of its logits without their bias, as in the first implementation.

The CLIP score of images and their captions (Hessel et al. 2021, arXiv 2104.08718), in percent:

    mean 100 max(cos(f, g), 0),     f, g the projected CLIP embeddings of an image and of its caption

as in torchmetrics; the paper's own number is 2.5 times the cosine. The interval is that of a mean.
"""

import torch
from torch import Tensor, nn

from progdist.evaluation.measures.estimate import Estimate

PARTS = 10


def inception_score(logits: Tensor, *, seed: int) -> dict[str, Estimate]:
    """The Inception Score of logits (M, classes), M >= 2 * PARTS; the standard error is that of the parts' mean."""
    count = len(logits)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    ends = [number * count // PARTS for number in range(1, PARTS)]
    parts = logits[order].double().softmax(1).tensor_split(ends)
    entropies = [(torch.special.entr(p.mean(0)).sum(), torch.special.entr(p).sum(1).mean()) for p in parts]
    scores = torch.stack([(of_mean - mean).exp() for of_mean, mean in entropies])
    return {"inception_score": Estimate.normal(float(scores.mean()), float(scores.std()) / PARTS**0.5, least=1.0)}


def clip_score(images: Tensor, captions: Tensor) -> Estimate:
    """The CLIP score of embeddings of images (N, D) and of their captions (N, D), N >= 2."""
    scores = 100 * nn.functional.cosine_similarity(images.double(), captions.double()).clamp(min=0)
    return Estimate.normal(float(scores.mean()), float(scores.std()) / len(scores) ** 0.5, most=100.0)
