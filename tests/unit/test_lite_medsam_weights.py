"""The published weights of LiteMedSAM in this project answer as in the public code; skipped where they are not at hand.

MEDSAM_LITE_MEDSAM is the file that `medsam teacher lite_medsam` places. The masks of real cases need MEDSAM_GOLDEN_DATA
too, the folder with the modality folders, and MEDSAM_LITE_MEDSAM_SEGS, the public script's masks of these cases.
"""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from medsam_core.imaging.prompts import tight_boxes
from medsam_core.models.config import TeacherConfig
from medsam_core.models.published import load_published
from medsam_core.models.segmenter import Segmenter
from medsam_core.models.weights import parameter_counts
from tests.golden_weights import KEPT
from tests.models import perturb

WEIGHTS = os.environ.get("MEDSAM_LITE_MEDSAM")
DATA = os.environ.get("MEDSAM_GOLDEN_DATA")
SEGS = os.environ.get("MEDSAM_LITE_MEDSAM_SEGS")

pytestmark = pytest.mark.skipif(WEIGHTS is None, reason="set MEDSAM_LITE_MEDSAM to the published lite_medsam.pth")

EMBEDDING_TOLERANCE = 1e-5
"""Of the range of the embedding."""
LOGIT_TOLERANCE = 1e-3
"""Of logits from -52 to 18."""

PERTURBED = (
    "image_encoder.layers.1.blocks.0.attn.attention_biases",
    "image_encoder.layers.2.blocks.3.mlp.fc2.weight",
    "image_encoder.neck.2.weight",
)
PERTURBED_DECODER = (
    "prompt_encoder.point_embeddings.3.weight",
    "mask_decoder.transformer.layers.1.self_attn.q_proj.weight",
    "mask_decoder.output_hypernetworks_mlps.0.layers.2.weight",
)


@pytest.fixture
def model() -> Segmenter:
    assert WEIGHTS is not None
    return load_published(Path(WEIGHTS), TeacherConfig(kind="lite_medsam", image_size=256))


def scene() -> Tensor:
    """Return an image as the encoder takes it, (1, 3, 256, 256) from 0 to 1: four soft ellipses on a weak pattern."""
    y, x = np.mgrid[:256, :256].astype(np.float32)
    values = 0.1 + 0.05 * np.sin(x / 9) * np.cos(y / 7)
    for cy, cx, height, width, grey in (
        (70, 80, 40, 30, 0.9),
        (180, 60, 22, 35, 0.6),
        (150, 190, 45, 28, 0.8),
        (60, 200, 18, 18, 0.4),
    ):
        steps = 12 * (np.hypot((y - cy) / height, (x - cx) / width) - 1)
        values = values + grey / (1 + np.exp(np.minimum(steps, 80)))
    values = values - values.min()
    return torch.from_numpy((values / values.max()).astype(np.float32)).expand(1, 3, -1, -1)


def fifty_boxes() -> Tensor:
    """Return boxes in the model frame, (1, 50, 4)."""
    random = np.random.Generator(np.random.PCG64(22))
    low = random.uniform(0, 200, (50, 2))
    return torch.from_numpy(np.concatenate([low, low + random.uniform(8, 56, (50, 2))], axis=1).astype(np.float32))[
        None
    ]


def golden() -> dict[str, Tensor]:
    with np.load(KEPT / "lite_medsam_golden.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def embedding_error(embedding: Tensor) -> float:
    """Return the largest difference from the public code's embedding, as a share of its range."""
    expected = golden()
    low, high = expected["embedding_range"].tolist()
    return float((embedding[:, ::16, ::8, ::8] - expected["embedding"]).abs().max()) / (high - low)


def logit_error(model: Segmenter, embedding: Tensor) -> float:
    """Return the largest difference from the public code's logits of fifty boxes."""
    logits, _ = model.decode(embedding, fifty_boxes())
    return float((logits[0, :, ::16, ::16] - golden()["logits"]).abs().max())


@torch.inference_mode()
def test_embeddings_logits_and_ious_are_the_public_codes(model: Segmenter) -> None:
    embedding = model.image_encoder(scene())
    assert embedding_error(embedding) <= EMBEDDING_TOLERANCE
    assert logit_error(model, embedding) <= LOGIT_TOLERANCE
    _, iou = model.decode(embedding, fifty_boxes())
    torch.testing.assert_close(iou[0], golden()["iou"], atol=1e-5, rtol=0)
    assert parameter_counts(model)["total"] == 9_791_300


@torch.inference_mode()
def test_raw_grey_values_are_normalised_as_the_public_code_does(model: Segmenter) -> None:
    assert embedding_error(model.encode(scene() * 200 + 30)) <= EMBEDDING_TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("name", PERTURBED)
def test_a_perturbed_layer_of_the_encoder_disagrees(model: Segmenter, name: str) -> None:
    perturb(model, name)
    assert embedding_error(model.image_encoder(scene())) > 10 * EMBEDDING_TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("name", PERTURBED_DECODER)
def test_a_perturbed_layer_of_the_decoder_disagrees(model: Segmenter, name: str) -> None:
    embedding = model.image_encoder(scene())
    perturb(model, name)
    assert logit_error(model, embedding) > 10 * LOGIT_TOLERANCE


def by_area(image: npt.NDArray[np.uint8], factor: int) -> npt.NDArray[np.float32]:
    """Shrink an image (H, W, 3) by a whole factor to the mean of each block, rounded as OpenCV's INTER_AREA rounds."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    sums = image.reshape(height, factor, width, factor, 3).sum(axis=(1, 3), dtype=np.int64)
    small = (sums + 2) // 4 if factor == 2 else np.rint(sums / factor**2)
    return small.astype(np.float32)


def square_cases() -> list[Path]:
    """Return images of 512 or 1024 pixels a side, a few of each modality."""
    names = (
        "CT/2DBox_CT_00{:02}",
        "MR/2DBox_MR_00{:02}",
        "Mammography/2DBox_Mammography_00{:02}",
        "XRay/2DBox_XRay_00{:02}",
    )
    return [Path(DATA or "", f"{name.format(number)}.npz") for name in names for number in (1, 6, 11)]


@pytest.mark.skipif(DATA is None or SEGS is None, reason="set MEDSAM_GOLDEN_DATA and MEDSAM_LITE_MEDSAM_SEGS")
@torch.inference_mode()
@pytest.mark.parametrize("path", square_cases(), ids=lambda path: path.stem)
def test_fed_by_the_public_scripts_rules_it_gives_the_scripts_masks(model: Segmenter, path: Path) -> None:
    with np.load(path, allow_pickle=False) as case, np.load(Path(SEGS or "", path.name), allow_pickle=False) as answer:
        imgs, gts, expected = case["imgs"], case["gts"], answer["segs"]
    side = imgs.shape[0]
    small = by_area(imgs if imgs.ndim == 3 else np.repeat(imgs[..., None], 3, -1), side // 256)
    embedding = model.encode(torch.from_numpy(small).permute(2, 0, 1)[None])
    boxes = tight_boxes(gts)[1] - np.array([0, 0, 1, 1])
    logits, _ = model.decode(embedding, torch.from_numpy(np.trunc(boxes * 256 / side).astype(np.float32))[None])
    full = torch.nn.functional.interpolate(logits, (side, side), mode="bilinear", align_corners=False)[0] > 0
    segs = np.zeros((side, side), np.uint16)
    for label, mask in enumerate(full.numpy(), start=1):
        segs[mask] = label
    for label in range(1, len(boxes) + 1):
        own, other = segs == label, expected == label
        assert 2 * (own & other).sum() / max(own.sum() + other.sum(), 1) >= 0.995
