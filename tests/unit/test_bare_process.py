"""A predictor without torch: it preprocesses, prompts, propagates and answers as one that has torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medsam_core.imaging.torch_resampling import TorchResampler
from tests.unit.bare_prediction import ABSENT, Answers, answers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Return what a process that has numpy and scipy alone answered."""
    file = tmp_path_factory.mktemp("bare") / "answers.npz"
    command = [sys.executable, "-m", "tests.unit.bare_prediction", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(file, allow_pickle=False) as content:
        return dict(content)


def test_the_process_had_none_of_the_heavy_packages(bare: Answers) -> None:
    assert bare["present"].tolist() == []
    loaded = {str(name).split(".")[0] for name in bare["loaded"]}
    assert "medsam_core" in loaded
    assert not loaded & set(ABSENT)


def test_its_answers_are_those_of_a_process_with_torch(bare: Answers) -> None:
    wanted = answers(TorchResampler())
    assert set(wanted) <= set(bare)
    for name, expected in wanted.items():
        np.testing.assert_array_equal(bare[name], expected, err_msg=name)


def test_its_answers_are_right(bare: Answers) -> None:
    for frame in ("square", "padded"):
        assert bare[f"{frame} encoded"] == 1, "an image is encoded once, however many boxes it has"
        assert bare[f"{frame} dsc"] > 0.95
        assert set(np.unique(bare[f"{frame} colour"]).tolist()) == {0, 1, 2}
        volume = bare[f"{frame} volume"]
        assert [sorted(np.unique(one).tolist()) for one in volume] == [[0, 2]] + [[0, 1, 2]] * 4
        # The first disc drifts by 3 pixels a slice, and its box with it.
        centres = [np.argwhere(one == 1)[:, 1].mean() for one in volume[1:]]
        np.testing.assert_allclose(np.diff(centres), 3, atol=0.5)
    assert len(bare["boxes"]) == 2
