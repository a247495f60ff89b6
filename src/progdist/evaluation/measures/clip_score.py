r"""The CLIP score of images and their captions (Hessel et al. 2021, arXiv 2104.08718), in percent.

    mean 100 max(cos(f, g), 0),     f, g the projected CLIP embeddings of an image and of its caption

as torchmetrics has it; the paper's own number is 2.5 times the cosine. The interval is that of a mean.
"""

from torch import Tensor, nn

from progdist.evaluation.measures.estimate import Estimate


def clip_score(images: Tensor, captions: Tensor) -> Estimate:
    """The CLIP score of embeddings of images (N, D) and of their captions (N, D), N >= 2."""
    scores = 100 * nn.functional.cosine_similarity(images.double(), captions.double()).clamp(min=0)
    return Estimate.normal(float(scores.mean()), float(scores.std()) / len(scores) ** 0.5, most=100.0)
