"""An image is encoded once for models that share an encoder, and the masks are those of each model alone."""

import numpy as np
import pytest
import torch

from medsam_core.base.data import LabelMap
from medsam_core.inference.predictor import Predictor
from medsam_core.inference.shared_encoder import SharedEncoder
from medsam_core.models.config import TeacherConfig
from medsam_core.models.segmenter import Segmenter, build_teacher
from pipelines.base.profile import InferenceSettings
from pipelines.evaluation.predictors import predictors_of

SIDE = 64


def small(seed: int) -> Segmenter:
    config = TeacherConfig(kind="stand_in", image_size=SIDE, embed_dim=32, depth=1, num_heads=2)
    return build_teacher(config, seed).eval()


def with_decoder_of(model: Segmenter, other: Segmenter) -> Segmenter:
    """Return a copy of a model with the other's decoder."""
    copy = small(0)
    copy.load_state_dict({**other.state_dict(), **{k: v for k, v in model.state_dict().items() if "image_enc" in k}})
    return copy.eval()


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (5, 40, 48), dtype=np.uint8)


BOXES = np.array([[5, 6, 0, 30, 33, 4], [10, 12, 1, 40, 36, 3]])


def test_masks_are_those_of_each_model_and_images_are_encoded_once(
    volume: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = small(1)
    second = with_decoder_of(first, small(2))
    alone = [Predictor(model).predict(volume, BOXES, is_3d=True) for model in (first, second)]
    encoded = []
    original = Segmenter.encode

    def counted(self: Segmenter, images: torch.Tensor) -> torch.Tensor:
        encoded.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Segmenter, "encode", counted)
    both = predictors_of({"first": first, "second": second}, InferenceSettings())
    together: list[LabelMap] = [both[name](volume, BOXES, True) for name in ("first", "second")]
    assert len(encoded) == len(volume)
    for separate, shared in zip(alone, together, strict=True):
        np.testing.assert_array_equal(separate, shared)
    assert not np.array_equal(*alone)


def test_models_of_other_encoders_encode_for_themselves(volume: np.ndarray) -> None:
    models = {"first": small(1), "second": small(2)}
    both = predictors_of(models, InferenceSettings())
    for name, model in models.items():
        np.testing.assert_array_equal(
            both[name](volume, BOXES, True), Predictor(model).predict(volume, BOXES, is_3d=True)
        )


def test_the_least_recent_embedding_is_forgotten() -> None:
    class Counting:
        def __init__(self) -> None:
            self.seen: list[float] = []

        def encode(self, image: np.ndarray) -> object:
            self.seen.append(float(image.flat[0]))
            return image

    model = Counting()
    encoder = SharedEncoder(model, remembered=2)  # type: ignore[arg-type]  # decodes nothing here
    for value in (1, 2, 1, 3, 1, 2):
        encoder.encode(np.full((3, 2, 2), value, np.float32))
    assert model.seen == [1, 2, 3, 2]
