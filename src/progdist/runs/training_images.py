"""The row of training images at the top of a run's page: some of the data as read, with class or caption.

samples/data.png     the images side by side; images for a latent model, too
samples/data.json    their classes or captions
"""

from torch.nn import functional

from progdist._utils.files import read_json, write_json
from progdist.data.grid import write_grid
from progdist.data.images import Images
from progdist.runs.evaluator import SHOWN
from progdist.runs.folder import RunFolder

LARGEST = 256  # pixels to which the longer side of each image is reduced


def write_training_images(folder: RunFolder, images: Images, seed: int) -> None:
    """Write SHOWN of a run's images, chosen by the seed, or all if there are fewer, unless they exist."""
    path, whose = folder.training_images(), {"seed": seed, **images.identity()}
    kept = path.with_suffix(".json")
    if path.is_file() and kept.is_file() and read_json(kept).get("data") == whose:
        return
    pixels, labels = images.sample(SHOWN, seed)
    if (factor := -(-max(pixels.shape[2:]) // LARGEST)) > 1:
        pixels = functional.avg_pool2d(pixels, factor, ceil_mode=True)
    names = [images.classes[label] for label in labels.tolist()] if images.labels is not None else []
    write_grid(pixels, path, SHOWN)
    write_json(kept, {"data": whose, "count": len(pixels), "names": names})
