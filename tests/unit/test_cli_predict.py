"""`medsam predict` and `medsam evaluate` on folders: the challenge's contract, and what a bad file or model costs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from medsam_core.inference.predictor import Predictor
from medsam_core.models.checkpoints import load_model, save_model
from medsam_core.models.config import StudentConfig
from medsam_core.models.segmenter import build_student
from pipelines.cli import main
from storage.sources.npz_source import read_case
from storage.sources.source import SourceConfig
from tests.unit.slices import half_open_to_inclusive

Array = npt.NDArray[Any]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSAM_HOME", str(tmp_path / "home"))


def student(path: Path, seed: int) -> Path:
    model = build_student(StudentConfig(backbone="repvit_m0_9", image_size=64), [0.5] * 3, [0.2] * 3, seed)
    save_model(path, model, {})
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained student: what it answers is noise, but always the same."""
    return student(tmp_path_factory.mktemp("model") / "model.safetensors", seed=0)


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return Predictor(load_model(model))


def noise(seed: int, *shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def many_boxes(count: int, side: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return half-open boxes in a square image."""
    low = np.random.default_rng(seed).integers(0, side - 12, (count, 2))
    return np.concatenate([low, low + 11], axis=1)


IMAGE_BOXES = np.array([[2, 3, 30, 41], [20, 10, 60, 50], [0, 0, 12, 12]])
VOLUME_BOXES = np.array([[4, 5, 1, 30, 31, 3], [10, 12, 0, 44, 40, 5]])


def good_files(folder: Path) -> dict[str, tuple[Array, Array]]:
    """Write a folder as the challenge's test set has them; returns images and half-open boxes by file name."""
    cases = {
        "2DBox_US_0001.npz": (noise(1, 50, 60), IMAGE_BOXES),
        "2DBox_Dermoscopy_0001.npz": (noise(2, 70, 64, 3), IMAGE_BOXES),
        "2DBox_Microscopy_0001.npz": (noise(3, 80, 80), many_boxes(300, 80)),
        "3DBox_CT_0001.npz": (noise(4, 6, 48, 52), VOLUME_BOXES),
    }
    folder.mkdir()
    for name, (imgs, boxes) in cases.items():
        more = {"spacing": np.array([3.0, 1.0, 1.0])} if name.startswith("3D") else {}
        np.savez_compressed(folder / name, imgs=imgs, boxes=half_open_to_inclusive(boxes), **more)
    return cases


def segs_of(file: Path) -> npt.NDArray[np.uint16]:
    with np.load(file, allow_pickle=False) as content:
        assert content.files == ["segs"]
        return np.asarray(content["segs"])


def predict(source: Path, output: Path, model: Path | str, *rules: str) -> int:
    return main(["predict", "-i", str(source), "-o", str(output), "--model", str(model), *rules])


def test_every_good_file_is_answered_in_the_contract_and_a_broken_one_is_named(
    tmp_path: Path, model: Path, predictor: Predictor, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = good_files(tmp_path / "in")
    whole = (tmp_path / "in" / "2DBox_US_0001.npz").read_bytes()
    (tmp_path / "in" / "2DBox_CT_0002.npz").write_bytes(whole[: len(whole) // 2])
    assert predict(tmp_path / "in", tmp_path / "out", model) == 1
    said = capsys.readouterr().out
    assert "refused 2DBox_CT_0002.npz: truncated" in said
    assert [line.split(":")[0] for line in said.splitlines() if line.startswith("refused")] == [
        "refused 2DBox_CT_0002.npz"
    ]
    assert said.splitlines()[-1] == "5 files found: 4 predicted, 0 skipped, 1 refused (named above)"
    assert {path.name for path in (tmp_path / "out").glob("*.npz")} == set(cases)
    for name, (imgs, boxes) in cases.items():
        segs = segs_of(tmp_path / "out" / name)
        is_3d = name.startswith("3D")
        assert segs.dtype == np.uint16
        assert segs.shape == (imgs.shape if is_3d else imgs.shape[:2])
        assert set(np.unique(segs)) <= set(range(len(boxes) + 1))
        np.testing.assert_array_equal(segs, predictor.predict(imgs, boxes, is_3d=is_3d))
    assert segs_of(tmp_path / "out" / "2DBox_Microscopy_0001.npz").max() > 255


def test_a_label_is_the_order_of_its_box_and_the_later_box_wins(
    tmp_path: Path, model: Path, predictor: Predictor
) -> None:
    cases = good_files(tmp_path / "in")
    assert predict(tmp_path / "in", tmp_path / "out", model) == 0
    imgs, boxes = cases["2DBox_US_0001.npz"]
    alone = [predictor.predict(imgs, boxes[[index]], is_3d=False) > 0 for index in range(len(boxes))]
    expected = np.max([mask * order for order, mask in enumerate(alone, start=1)], axis=0)
    segs = segs_of(tmp_path / "out" / "2DBox_US_0001.npz")
    np.testing.assert_array_equal(segs, expected)
    assert len(np.unique(segs)) > 2, "several boxes answered"
    volume = segs_of(tmp_path / "out" / "3DBox_CT_0001.npz")
    assert 1 not in volume[[0, 4, 5]], "the first box ends at slices 1 and 3"


@pytest.mark.parametrize(
    "rules",
    [
        {"volume_prompts": "propagated"},
        {"overlap": "largest-first"},
        {"volume_prompts": "sections", "overlap": "logit"},
    ],
    ids=str,
)
def test_the_rules_of_prediction_are_those_of_the_command_line(
    tmp_path: Path, model: Path, predictor: Predictor, rules: dict[str, Any]
) -> None:
    cases = good_files(tmp_path / "in")
    asked = [part for name, rule in rules.items() for part in (f"--{name.replace('_', '-')}", rule)]
    assert predict(tmp_path / "in", tmp_path / "out", model, *asked) == 0
    wanted, others = Predictor(load_model(model), **rules), 0
    for name, (imgs, boxes) in cases.items():
        found = segs_of(tmp_path / "out" / name)
        np.testing.assert_array_equal(found, wanted.predict(imgs, boxes, is_3d=name.startswith("3D")))
        others += int((found != predictor.predict(imgs, boxes, is_3d=name.startswith("3D"))).sum())
    assert others, "the rule makes a difference"


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"imgs": noise(0, 20, 20)}, "boxes_shape: .*expected `boxes`, found none"),
        ({"imgs": noise(0, 20, 20), "boxes": np.array([[30, 30, 40, 40]])}, "boxes_shape: .*at least one pixel"),
        ({"imgs": noise(0, 20, 20), "boxes": np.array([[1, 1, 0, 4, 4, 0]])}, "boxes_shape"),
        ({"imgs": noise(0, 20, 20).astype(float), "boxes": IMAGE_BOXES}, "imgs_dtype"),
        ({"imgs": np.array([{}], dtype=object), "boxes": IMAGE_BOXES}, "pickled"),
    ],
    ids=["no boxes", "box outside", "volume's box", "float image", "pickled"],
)
def test_one_bad_file_costs_itself_alone(
    arrays: dict[str, Array], reason: str, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    np.savez(source / "2DBox_US_0001.npz", **arrays)
    np.savez(source / "2DBox_US_0002.npz", imgs=noise(0, 20, 20), boxes=np.array([[1, 1, 18, 18]]))
    assert predict(source, output, model) == 1
    refusals = [line for line in capsys.readouterr().out.splitlines() if line.startswith("refused")]
    assert len(refusals) == 1
    assert pd.Series(refusals).str.contains(f"2DBox_US_0001.npz: {reason}").all()
    assert [path.name for path in output.glob("*.npz")] == ["2DBox_US_0002.npz"]


def test_a_file_without_objects_is_answered_with_background(tmp_path: Path, model: Path) -> None:
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "2DBox_US_0001.npz", imgs=noise(0, 20, 30), boxes=np.zeros((0, 4), np.int64))
    assert predict(tmp_path / "in", tmp_path / "out", model) == 0
    segs = segs_of(tmp_path / "out" / "2DBox_US_0001.npz")
    assert (segs.shape, segs.dtype, segs.any()) == ((20, 30), np.uint16, np.False_)


def test_predictions_never_replace_the_images_they_are_made_from(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good_files(tmp_path / "in")
    before = {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    assert predict(tmp_path / "in", tmp_path / "home" / ".." / "in", model) == 2
    assert "another folder than --input" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before


def test_wrong_arguments_end_with_status_2_and_one_sentence(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    good_files(tmp_path / "in")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(model.read_bytes()[:1000])
    for source, weights, message in (
        ("in", tmp_path / "missing.safetensors", "expected a safetensors file or an MLflow model URI"),
        ("in", damaged, "damaged.safetensors"),
        ("empty", model, "expected a folder of npz files, found none"),
        ("nowhere", model, "expected a folder of npz files, found none"),
    ):
        assert predict(tmp_path / source, tmp_path / "out", weights) == 2
        error = capsys.readouterr().err
        assert error.startswith("medsam predict: ")
        assert message in error
    monkeypatch.setenv("MEDSAM_PROFILE", "papr")
    assert predict(tmp_path / "in", tmp_path / "out", model) == 2
    assert "found 'papr'" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*.npz"))


def labelled(folder: Path, seed: int = 0) -> Path:
    (folder / "US").mkdir(parents=True)
    for number in range(3):
        gts = np.zeros((40, 44), np.uint8)
        gts[5 + number : 25, 8:30] = 2
        np.savez(folder / "US" / f"US_{number}.npz", imgs=noise(seed + number, 40, 44), gts=gts)
    return folder


def evaluate(data: Path, output: Path, model: Path, *rules: str) -> int:
    return main(["evaluate", "--data", str(data), "-o", str(output), "--model", str(model), *rules])


def test_an_evaluation_goes_on_in_its_folder_but_never_takes_over_another_models_predictions(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = labelled(tmp_path / "data"), tmp_path / "report"
    assert evaluate(data, output, model) == 0
    table = pd.read_csv(output / "comparison.csv")
    kept = {path: path.stat().st_mtime_ns for path in (output / "segs" / "student").rglob("*.npz")}
    assert len(kept) == 3
    assert evaluate(data, output, model) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    pd.testing.assert_frame_equal(pd.read_csv(output / "comparison.csv"), table)
    capsys.readouterr()
    other = student(tmp_path / "other.safetensors", seed=1)
    assert evaluate(data, output, other) == 2
    assert "model: expected" in capsys.readouterr().err
    changed = labelled(tmp_path / "changed", seed=50)
    assert evaluate(changed, output, model) == 2
    assert "cases: expected" in capsys.readouterr().err
    assert evaluate(data, output, model, "--overlap", "logit") == 2
    assert "rules.overlap: expected 'logit'" in capsys.readouterr().err
    assert evaluate(data, tmp_path / "second", other) == 0
    again = pd.read_csv(tmp_path / "second" / "comparison.csv")
    assert again["DSC student"].iloc[0] != table["DSC student"].iloc[0]
    assert again["DSC ellipse"].iloc[0] == table["DSC ellipse"].iloc[0]


def test_cases_that_the_model_was_trained_on_stay_out_of_the_headline(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = labelled(tmp_path / "data")
    own = tmp_path / "own" / "model.safetensors"
    own.parent.mkdir()
    own.write_bytes(model.read_bytes())
    case = read_case(data / "US" / "US_1.npz", "US_1", "US", SourceConfig())
    (own.parent / "seen_cases.json").write_text(f'{{"{case.content_hash}": "train"}}')
    assert evaluate(data, tmp_path / "report", own) == 0
    said = capsys.readouterr().out
    assert "1 cases were seen in training or validation" in said
    assert "has a label to score" not in said
    assert pd.read_csv(tmp_path / "report" / "comparison.csv")["cases"].tolist() == [2, 2]
    rows = pd.read_csv(tmp_path / "report" / "cases.csv")
    student_rows = rows[rows["predictor"] == "student"].set_index("case_id")["split"]
    assert student_rows.to_dict() == {"US/US_0": "unseen", "US/US_1": "train", "US/US_2": "unseen"}


def test_a_folder_of_training_cases_alone_has_a_report_without_headline_means(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = labelled(tmp_path / "data")
    own = tmp_path / "own" / "model.safetensors"
    own.parent.mkdir()
    own.write_bytes(model.read_bytes())
    paths = [(path, path.stem) for path in data.rglob("*.npz")]
    seen = {read_case(path, name, "US", SourceConfig()).content_hash: "train" for path, name in paths}
    (own.parent / "seen_cases.json").write_text(json.dumps(seen))
    assert evaluate(data, tmp_path / "report", own) == 0
    said = capsys.readouterr().out
    assert f"{len(paths)} cases were seen in training or validation" in said
    assert "no case is left for the headline means" in said
    assert pd.read_csv(tmp_path / "report" / "comparison.csv").empty
    assert set(pd.read_csv(tmp_path / "report" / "summary.csv")["split"]) == {"train"}
    assert "has a label to score" not in said
