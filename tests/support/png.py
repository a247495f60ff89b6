"""Images that a page holds."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image


def pixels(image: str) -> Any:  # noqa: ANN401
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image.removeprefix("data:image/png;base64,")))))
