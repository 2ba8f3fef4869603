"""The registered model for MLflow (`mlflow.pyfunc.load_model`): cases in, label maps out.

What belongs here: the wrapper that MLflow executes. Not here: inference itself (`medsam_core.inference.predictor`).
MLflow copies this file into every registered version, and runs the copy later with the version of the project that is
installed then. Therefore the modules and names that this file imports must never move.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext


class RepViTMedSAM(PythonModel):  # type: ignore[misc]
    """Predicts cases, each a dict with `imgs`, `boxes` and optionally `is_3d`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights from the file that was logged with the model."""
        from medsam_core.inference.predictor import Predictor
        from medsam_core.models.checkpoints import load_model

        self._predictor = Predictor(load_model(Path(context.artifacts["model"])))

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 - MLflow's signature
        # MLflow reads the model's signature off these two hints, and knows none for arrays but Any.
        model_input: list[dict[str, Any]],
        params: dict[str, object] | None = None,  # noqa: ARG002 - MLflow's signature
    ) -> list[Any]:
        """Return `segs` of each case as in the challenge: uint16 of its shape, label = 1-based order of the box.

        `boxes` are as files hold them: (N, 4) or, for a volume, (N, 6), maxima inclusive.
        """
        return [self._segs(case) for case in model_input]

    def _segs(self, case: Mapping[str, npt.ArrayLike]) -> npt.NDArray[np.uint16]:
        from medsam_core.imaging.prompts import inclusive_to_half_open

        boxes = np.asarray(case["boxes"])
        is_3d = bool(case.get("is_3d", boxes.shape[-1] == 6))
        return self._predictor.predict(np.asarray(case["imgs"]), inclusive_to_half_open(boxes), is_3d=is_3d)


set_model(RepViTMedSAM())
