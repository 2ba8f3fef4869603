"""Models that differ in their decoders only: an image is encoded once for all of them.

What belongs here: remembering embeddings by the image that they are of. Not here: predicting a case (`predictor`), or
whether two encoders are the same.
"""

import hashlib
from collections import OrderedDict

import numpy as np

from medsam_core.base.geometry import Geometry
from medsam_core.imaging.promptable import PromptableModel
from medsam_core.imaging.resampling import Floats

REMEMBERED = 128
"""Embeddings kept by default: half a gigabyte of 256 x 64 x 64 float32."""


class SharedEncoder:
    """Encodes images with one model and remembers the last embeddings.

    Args:
        model: Whose encoder is used.
        remembered: Embeddings kept at a time. A volume of more slices is encoded again for every model.
    """

    def __init__(self, model: PromptableModel, remembered: int = REMEMBERED) -> None:
        self._model = model
        self._remembered = remembered
        self._embeddings: OrderedDict[bytes, object] = OrderedDict()

    def encode(self, image: Floats) -> object:
        """Return the embedding of an image, (3, S, S), computed if it is not remembered."""
        key = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
        if key not in self._embeddings:
            self._embeddings[key] = self._model.encode(image)
            if len(self._embeddings) > self._remembered:
                self._embeddings.popitem(last=False)
        self._embeddings.move_to_end(key)
        return self._embeddings[key]


class WithSharedEncoder:
    """A `PromptableModel` that decodes by itself and encodes with others.

    Args:
        model: Decodes; its own encoder must be that of `encoder`.
        encoder: Encodes for several models.
    """

    def __init__(self, model: PromptableModel, encoder: SharedEncoder) -> None:
        self._model, self._encoder = model, encoder

    @property
    def geometry(self) -> Geometry:
        """The model's."""
        return self._model.geometry

    def encode(self, image: Floats) -> object:
        """Encode an image, (3, S, S), once for all."""
        return self._encoder.encode(image)

    def decode(self, embedding: object, boxes: Floats) -> tuple[Floats, Floats]:
        """Decode boxes, (K, 4), with the model itself."""
        return self._model.decode(embedding, boxes)
