r"""The Inception Score (Salimans et al. 2016, arXiv 1606.03498), under any classifier.

    exp(mean KL(p(y | x) || p(y))) = exp(H(mean p(y | x)) - mean H(p(y | x))),     p(y) the mean of p(y | x)

in ten parts of the samples in a random order, of which mean and deviation are given in papers. Part i begins at sample
i n // 10, as in the first implementation and torch-fidelity; torchmetrics makes other parts where 10 does not divide n.
Under Inception p is the softmax of its logits without their bias, as in the first implementation. It does not look at
the data.
"""

import torch
from torch import Tensor

from progdist.evaluation.measures.estimate import Estimate

PARTS = 10


def inception_score(logits: Tensor, *, seed: int) -> dict[str, Estimate]:
    """The Inception Score of logits (M, classes), M >= 2 * PARTS; the standard error is that of the parts' mean."""
    count = len(logits)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    p = logits[order].double().softmax(1)
    ends = [number * count // PARTS for number in range(1, PARTS)]
    scores = torch.stack([_score(part) for part in p.tensor_split(ends)])
    return {"inception_score": Estimate.normal(float(scores.mean()), float(scores.std()) / PARTS**0.5, least=1.0)}


def _score(p: Tensor) -> Tensor:
    """The score of probabilities (M, classes)."""
    return (torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean()).exp()
