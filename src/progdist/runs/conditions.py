"""What the networks of a run are told of each example: its class, or its caption and a guidance scale."""

from dataclasses import dataclass
from functools import cached_property, partial

from progdist.data.images import Images
from progdist.models.model import Model
from progdist.models.text.conditions import CaptionConditions
from progdist.models.text.embeddings import Embeddings, encode_captions
from progdist.models.unet import Conditions, class_conditions
from progdist.recipes.recipe import Recipe
from progdist.runs.folder import RunFolder
from progdist.training.callbacks import Callback
from progdist.training.distributed import Distributed


@dataclass(frozen=True)
class RunConditions:
    """The conditions of a run's models; captions are encoded when they are first asked for, once.

    Attributes:
        recipe: of the run.
        images: the data.
        given: the teacher to take; None where one is trained.
        folder: where the encoded captions are kept.
        callback: told before captions are encoded.
        distributed: the processes, of which one encodes.
    """

    recipe: Recipe
    images: Images
    given: Model | None
    folder: RunFolder
    callback: Callback
    distributed: Distributed

    def __call__(self, model: Model) -> Conditions:
        """What tells a model's network the class or the caption of each example of a batch."""
        if model.text is None:
            return class_conditions(model.denoiser.network)
        usual = model.text.guided(self.guidance, None).usual_guidance if self.guidance else None
        return CaptionConditions(self._embeddings, model.text.constants(self.images.shape)).at(usual)

    @property
    def guidance(self) -> tuple[float, float] | None:
        """The least and the largest guidance scale that students take as an input; None where they take none."""
        taken = self.given.text.guidance if self.given and self.given.text else None
        guidance = self.recipe.conversion.guidance or taken
        return guidance if isinstance(guidance, tuple) else None

    @cached_property
    def _embeddings(self) -> Embeddings:
        """Those of the data's captions."""
        assert self.given is not None
        assert self.given.text is not None  # a model that takes captions has its encoders from the given one
        open_encoder = partial(self.given.text.encoder, self.distributed.device)
        captions, cache, notify = self.images.classes, self.folder.captions(), self.callback.note
        self.distributed.on_main_process(lambda: encode_captions(captions, open_encoder, cache, notify).size)
        return encode_captions(captions, open_encoder, cache, notify)
