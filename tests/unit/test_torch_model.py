"""A segmenter behind the contract in numpy, and the code of models that were registered earlier."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from medsam_core.imaging.promptable import BringsResampler, MakesPromptable, PromptableModel
from medsam_core.imaging.resampling import Floats, NumpyResampler
from medsam_core.imaging.torch_resampling import TorchResampler
from medsam_core.inference.predictor import Predictor
from medsam_core.models.checkpoints import save_model
from medsam_core.models.config import TeacherConfig
from medsam_core.models.segmenter import Segmenter, build_teacher
from medsam_core.models.torch_model import TorchModel

EARLIER_WRAPPER = """
from pathlib import Path
from typing import Any

import numpy as np


class RepViTMedSAM:
    def load_context(self, context: Any) -> None:
        from medsam_core.inference.predictor import Predictor
        from medsam_core.models.checkpoints import load_model

        self._predictor = Predictor(load_model(Path(context["model"])))

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        return [self._segs(case) for case in model_input]

    def _segs(self, case: Any) -> Any:
        from medsam_core.imaging.prompts import inclusive_to_half_open

        boxes = np.asarray(case["boxes"])
        is_3d = bool(case.get("is_3d", boxes.shape[-1] == 6))
        return self._predictor.predict(np.asarray(case["imgs"]), inclusive_to_half_open(boxes), is_3d=is_3d)
"""
"""What MLflow copied into every model that was registered before the contract was one of numpy arrays."""


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    config = TeacherConfig(kind="stand_in", image_size=64, embed_dim=32, depth=1, num_heads=2)
    return build_teacher(config, seed=1).eval()


def test_numpy_goes_in_and_out_with_the_numbers_of_the_segmenter(segmenter: Segmenter) -> None:
    image = np.random.default_rng(0).random((3, 64, 64), dtype=np.float32) * 255
    image.flags.writeable = False
    boxes = np.array([[1, 2, 30, 40], [5, 5, 64, 64]], dtype=np.float32)
    model: PromptableModel = segmenter.promptable()
    logits, iou = model.decode(model.encode(image), boxes)
    assert model.geometry == segmenter.geometry
    with torch.inference_mode():
        wanted = segmenter(torch.tensor(image)[None], torch.tensor(boxes)[None])
    for found, tensor in zip((logits, iou), wanted, strict=True):
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, tensor[0])


def test_half_precision_answers_come_out_as_float32(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TorchModel(segmenter)
    embedding = model.encode(np.zeros((3, 64, 64), dtype=np.float32))
    decode = segmenter.decode
    halved = lambda *args: tuple(part.to(torch.bfloat16) for part in decode(*args))  # noqa: E731
    monkeypatch.setattr(segmenter, "decode", halved)
    logits, iou = model.decode(embedding, np.array([[0, 0, 9, 9]], dtype=np.float32))
    assert logits.dtype == iou.dtype == np.float32


def test_an_embedding_of_another_model_is_refused(segmenter: Segmenter) -> None:
    with pytest.raises(TypeError, match="expected the tensor that encode gave, found ndarray"):
        TorchModel(segmenter).decode(np.zeros(3), np.zeros((1, 4), dtype=np.float32))


def test_a_segmenter_is_predicted_with_as_it_was_trained_unless_told_otherwise(segmenter: Segmenter) -> None:
    assert isinstance(segmenter, MakesPromptable)
    assert isinstance(segmenter.promptable(), BringsResampler)
    calls: list[str] = []

    class Watched(NumpyResampler):
        def resize_image(self, image: npt.NDArray[np.uint8], height: int, width: int) -> Floats:
            calls.append("numpy")
            return super().resize_image(image, height, width)

    image = np.random.default_rng(0).integers(0, 256, (50, 40), dtype=np.uint8)
    boxes = np.array([[4, 5, 30, 44], [0, 0, 9, 9]])
    plain = Predictor(segmenter).predict(image, boxes, is_3d=False)
    named = Predictor(TorchModel(segmenter), resampler=TorchResampler()).predict(image, boxes, is_3d=False)
    np.testing.assert_array_equal(plain, named)
    assert plain.any()
    assert not calls
    numpy_alone = Predictor(segmenter, resampler=Watched()).predict(image, boxes, is_3d=False)
    assert calls == ["numpy"]
    assert np.mean(numpy_alone != plain) < 0.01


def test_the_code_of_models_registered_earlier_still_predicts(segmenter: Segmenter, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    save_model(weights, segmenter, {"role": "test"})
    names: dict[str, type] = {}
    exec(EARLIER_WRAPPER, names)
    wrapper = names["RepViTMedSAM"]()
    wrapper.load_context({"model": weights})
    rng = np.random.default_rng(0)
    image, volume = (rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((40, 50, 3), (3, 40, 50)))
    flat, deep = wrapper.predict(
        None, [{"imgs": image, "boxes": [[3, 4, 20, 30]]}, {"imgs": volume, "boxes": [[3, 4, 0, 20, 30, 1]]}]
    )
    predictor = Predictor(segmenter)
    np.testing.assert_array_equal(flat, predictor.predict(image, np.array([[3, 4, 21, 31]]), is_3d=False))
    np.testing.assert_array_equal(deep, predictor.predict(volume, np.array([[3, 4, 0, 21, 31, 1]]), is_3d=True))
    assert flat.any()
    assert deep.any()
