r"""The Inception Score (Salimans et al. 2016, arXiv 1606.03498), by torchmetrics, under any classifier.

    exp(mean KL(p(y | x) || p(y))),     p(y) the mean of p(y | x) over the samples,

in ten parts of the samples in a random order, of which mean and deviation are given in papers. Under Inception p is the
softmax of its logits without their bias, as in the first implementation. It does not look at the data.
"""

import warnings

import torch
from torch import Tensor

from progdist.evaluation.measures.estimate import Estimate
from progdist.evaluation.measures.kernel import PrecomputedFeatures

PARTS = 10


def inception_score(logits: Tensor, *, seed: int) -> dict[str, Estimate]:
    """The Inception Score of logits (M, classes), M >= 2 * PARTS; the standard error is that of the parts' mean."""
    from torchmetrics.image.inception import InceptionScore  # as in `kernel`

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `InceptionScore` will save all")
        torch.manual_seed(seed)
        metric = InceptionScore(PrecomputedFeatures(logits.shape[1]), splits=PARTS, sync_on_compute=False)
        metric.update(logits.double())
        mean, deviation = metric.compute()
    return {"inception_score": Estimate.normal(float(mean), float(deviation) / PARTS**0.5, least=1.0)}
