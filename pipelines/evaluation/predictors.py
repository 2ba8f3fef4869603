"""Predictors: functions of a case, from models or boxes. What belongs here: making them. Not here: scoring."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipelines.base.profile import InferenceSettings
from pipelines.base.workspace import Workspace

if TYPE_CHECKING:
    from medsam_core.inference.predictor import Predictor
    from medsam_core.models.segmenter import Segmenter
    from pipelines.evaluation.cases import Predict


def predictor(
    model: "Segmenter", inference: InferenceSettings, *, constant_image: int | None = None, device: str = "cpu"
) -> "Predict":
    """Return a function that predicts a case with a model."""
    from medsam_core.inference.predictor import Predictor

    return _of(Predictor(model.eval().to(device), constant_image=constant_image, **inference.model_dump()))


def _of(runner: "Predictor") -> "Predict":
    return lambda imgs, boxes, is_3d: runner.predict(imgs, boxes, is_3d=is_3d)


def predictors_of(
    models: Mapping[str, "Segmenter"], inference: InferenceSettings, *, device: str = "cpu"
) -> dict[str, "Predict"]:
    """Return a function for each model that predicts a case; those of one encoder encode an image once for all."""
    from medsam_core.inference.predictor import Predictor
    from medsam_core.inference.shared_encoder import SharedEncoder, WithSharedEncoder
    from medsam_core.models.segmenter import same_encoder

    if len(models) < 2 or not same_encoder(list(models.values())):
        return {name: predictor(model, inference, device=device) for name, model in models.items()}
    ready = {name: model.eval().to(device).promptable() for name, model in models.items()}
    encoder = SharedEncoder(next(iter(ready.values())))
    return {
        name: _of(Predictor(WithSharedEncoder(model, encoder), resampler=model.resampler, **inference.model_dump()))
        for name, model in ready.items()
    }


def box_predictors() -> dict[str, "Predict"]:
    """Return the predictors that use only the boxes."""
    from medsam_core.inference.baselines import filled_boxes, inscribed_ellipses

    return {
        "ellipse": lambda imgs, boxes, is_3d: inscribed_ellipses(imgs.shape if is_3d else imgs.shape[:2], boxes),
        "filled_box": lambda imgs, boxes, is_3d: filled_boxes(imgs.shape if is_3d else imgs.shape[:2], boxes),
    }


def device_of(workspace: Workspace) -> str:
    """Return the device on which this profile runs models: `cpu`, or a GPU."""
    from pipelines.base.devices import choose_device

    return str(choose_device(workspace.profile))
