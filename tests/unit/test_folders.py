"""A folder of files of every kind: each is predicted, scored, skipped or refused by itself, and all are counted."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from medsam_core.models.checkpoints import save_model
from medsam_core.models.config import StudentConfig
from medsam_core.models.segmenter import build_student
from pipelines.cli import main
from pipelines.folder_inference.tally import Tally
from pipelines.ingest.spacing_evidence import speaks_backwards
from storage.base.errors import BadSampleError
from storage.base.fingerprints import file_hash, fingerprint
from storage.sources import npz_source
from storage.sources.npz_folder import NpzFolder
from storage.sources.source import SourceConfig

Array = npt.NDArray[np.generic]
Said = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSAM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    architecture = StudentConfig(backbone="repvit_m0_9", image_size=64)
    save_model(path, build_student(architecture, [0.5] * 3, [0.2] * 3, 0), {})
    return path


def case(seed: int = 0, **more: Array) -> dict[str, Array]:
    gts = np.zeros((24, 28), np.uint8)
    gts[4 + seed : 16, 5:20] = 1
    imgs = np.random.default_rng(seed).integers(0, 256, (24, 28, 3), dtype=np.uint8)
    return {"imgs": imgs, "gts": gts, "boxes": np.array([[5, 4 + seed, 19, 15]]), **more}


def volume(spacing: list[float]) -> dict[str, Array]:
    gts = np.zeros((3, 24, 20), np.uint8)
    gts[1, 4:16, 5:15] = 1
    return {"imgs": np.full((3, 24, 20), 7, np.uint8), "gts": gts, "spacing": np.array(spacing)}


def save(path: Path | str, **arrays: Array) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120 - names that are not UTF-8
    with open(path, "wb") as file:  # noqa: PTH123
        np.savez(file, **arrays)


def good(folder: Path, count: int = 2) -> Path:
    for number in range(count):
        save(folder / f"2DBox_US_{number}.npz", **case(number))
    return folder


def predict(source: Path, output: Path, model: Path | str) -> int:
    return main(["predict", "-i", str(source), "-o", str(output), "--model", str(model)])


def evaluate(data: Path, output: Path, model: Path, *more: str) -> int:
    return main(["evaluate", "--data", str(data), "-o", str(output), "--model", str(model), *more])


def closing(said: Said) -> str:
    return said.readouterr().out.splitlines()[-1]


UNUSED: dict[str, Array] = {
    "pickled": np.array([{"z_min": 1}], dtype=object),
    "empty": np.array([]),
    "flat": np.array([5, 4, 19, 15]),
    "turned": np.array([[19, 15, 5, 4]]),
    "outside": np.array([[60, 60, 70, 70]]),
    "fraction": np.array([[1.5, 2, 3, 4]]),
    "text": np.array(["a"]),
}


def test_evaluate_never_looks_at_boxes(tmp_path: Path, model: Path, capsys: Said) -> None:
    for name, boxes in UNUSED.items():
        save(tmp_path / "in" / f"2DBox_US_{name}.npz", **case(boxes=boxes))
    assert evaluate(tmp_path / "in", tmp_path / "out", model) == 0
    assert closing(capsys) == "7 files found: 7 scored, 0 skipped, 0 refused"


def test_predict_never_looks_at_labels_or_spacing(tmp_path: Path, model: Path, capsys: Said) -> None:
    unused = [np.array([{}], dtype=object), np.full((3, 3), -1.5), np.array("x")]
    for number, wrong in enumerate(unused):
        boxes = np.array([[5, 4, 1, 14, 15, 1]])
        save(tmp_path / "in" / f"2DBox_US_{number}.npz", **case(gts=wrong, spacing=wrong))
        save(
            tmp_path / "in" / f"CT_{number}.npz",
            **{**volume([1, 1, 1]), "boxes": boxes, "gts": wrong, "spacing": wrong},
        )
    assert predict(tmp_path / "in", tmp_path / "out", model) == 0
    assert closing(capsys) == "6 files found: 6 predicted, 0 skipped, 0 refused"


@pytest.mark.parametrize("shape", [(0,), (0, 4), (0, 6)])
@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.object_])
def test_an_empty_list_of_boxes_is_answered_with_background(
    shape: tuple[int, ...], dtype: type[np.generic], tmp_path: Path, model: Path
) -> None:
    save(tmp_path / "in" / "2DBox_US_a.npz", **case(boxes=np.zeros(shape, dtype)))
    save(tmp_path / "in" / "3DBox_CT_a.npz", **volume([1, 1, 1]), boxes=np.zeros(shape, dtype))
    assert predict(tmp_path / "in", tmp_path / "out", model) == 0
    for name, expected in (("2DBox_US_a.npz", (24, 28)), ("3DBox_CT_a.npz", (3, 24, 20))):
        segs = np.load(tmp_path / "out" / name)["segs"]
        assert (segs.shape, segs.dtype, segs.any()) == (expected, np.uint16, np.False_)


@pytest.mark.parametrize(
    ("boxes", "quoted"),
    [
        ([[5, 4, 19, 15], [60, 60, 70, 70]], "[60, 60, 70, 70]"),
        ([[19, 15, 5, 4]], "[19, 15, 5, 4]"),
        ([[1.5, 2, 3, 4]], "[1.5, 2.0, 3.0, 4.0]"),
        ([[-9, -9, -3, -3]], "[-9, -9, -3, -3]"),
    ],
)
def test_a_wrong_box_is_quoted_as_the_file_has_it_and_the_others_go_on(
    boxes: list[list[float]], quoted: str, tmp_path: Path, model: Path, capsys: Said
) -> None:
    save(good(tmp_path / "in") / "2DBox_US_wrong.npz", **case(boxes=np.array(boxes)))
    assert predict(tmp_path / "in", tmp_path / "out", model) == 1
    lines = capsys.readouterr().out.splitlines()
    (refusal,) = [line for line in lines if line.startswith("refused ")]
    assert refusal.startswith("refused 2DBox_US_wrong.npz: boxes_shape: ")
    assert quoted in refusal
    assert "exclusive" not in refusal
    assert lines[-1] == "3 files found: 2 predicted, 0 skipped, 1 refused (named above)"


def other_encoding(folder: Path) -> None:
    save(os.fsencode(folder).decode() + "/" + os.fsdecode("US_超".encode("gbk")) + ".npz", **case())


def line_break(folder: Path) -> None:
    save(folder / "2DBox_US_\n\x1b[1m.npz", imgs=np.zeros(3))


def a_folder(folder: Path) -> None:
    (folder / "2DBox_US_folder.npz" / "x").mkdir(parents=True)


def circle(folder: Path) -> None:
    (folder / "2DBox_US_a.npz").symlink_to("2DBox_US_b.npz")
    (folder / "2DBox_US_b.npz").symlink_to("2DBox_US_a.npz")
    (folder / "up").symlink_to(folder)


def cut_short(folder: Path) -> None:
    save(folder / "2DBox_US_cut.npz", **case())
    os.truncate(folder / "2DBox_US_cut.npz", 900)


def longest_name(folder: Path) -> None:
    save(folder / ("2DBox_US_" + "1" * 242 + ".npz"), **case())


def upper_case(folder: Path) -> None:
    save(folder / "2DBox_US_upper.NPZ", **case())


def droppings(folder: Path) -> None:
    for name in ("._2DBox_US_0.npz", ".DS_Store", "readme.txt"):
        (folder / name).write_bytes(b"x")


def trash(folder: Path) -> None:
    good(folder / ".Trash")


ODD: list[tuple[Callable[[Path], None], tuple[int, int, int]]] = [
    (other_encoding, (2, 0, 1)),
    (line_break, (2, 0, 1)),
    (a_folder, (2, 0, 0)),
    (circle, (2, 2, 0)),
    (cut_short, (2, 0, 1)),
    (longest_name, (3, 0, 0)),
    (upper_case, (3, 0, 0)),
    (droppings, (2, 3, 0)),
    (trash, (2, 1, 0)),
]


@pytest.mark.parametrize(("make", "counts"), ODD, ids=[make.__name__ for make, _ in ODD])
@pytest.mark.parametrize("verb", ["predicted", "scored"])
def test_an_odd_file_costs_itself_alone(
    make: Callable[[Path], None], counts: tuple[int, int, int], verb: str, tmp_path: Path, model: Path, capsys: Said
) -> None:
    make(good(tmp_path / "in"))
    act = predict if verb == "predicted" else evaluate
    done, skipped, refused = counts
    assert act(tmp_path / "in", tmp_path / "out", model) == (1 if refused and act is predict else 0)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("refused ") for line in lines) == refused
    assert bool(skipped) == any(line.startswith("skipped ") for line in lines)
    assert lines[-1].startswith(f"{sum(counts)} files found: {done} {verb}, {skipped} skipped")
    if act is evaluate:
        table = pd.read_csv(tmp_path / "out" / "not_scored.csv")
        assert (table["outcome"] == "refused").sum() == refused


@pytest.mark.parametrize("how", ["gone", "folder", "changed", "cut short"])
def test_a_file_that_vanishes_or_changes_meanwhile_costs_itself_and_a_rerun_goes_on(
    how: str, tmp_path: Path, model: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, read = good(tmp_path / "in", 3), NpzFolder.read
    victim = data / "2DBox_US_1.npz"
    times = []

    def read_later(source: NpzFolder, case_id: str, *more: object) -> object:
        times.append(case_id)
        if times.count("2DBox_US_1") == 2 and case_id == "2DBox_US_1":
            spoil(victim, how)
        return read(source, case_id, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(NpzFolder, "read", read_later)
    assert evaluate(data, tmp_path / "out", model) == 0
    said = capsys.readouterr().out
    assert "refused 2DBox_US_1: " in said
    assert said.splitlines()[-1] == "3 files found: 2 scored, 0 skipped, 1 refused (named above)"
    assert set(pd.read_csv(tmp_path / "out" / "cases.csv")["case_id"]) == {"2DBox_US_0", "2DBox_US_2"}
    monkeypatch.setattr(NpzFolder, "read", read)
    shutil.rmtree(victim, ignore_errors=True)
    victim.unlink(missing_ok=True)
    kept = (tmp_path / "out" / "segs" / "student" / "2DBox_US_0.npz").stat().st_mtime_ns
    assert evaluate(data, tmp_path / "out", model) == 0
    assert closing(capsys) == "2 files found: 2 scored, 0 skipped, 0 refused"
    assert (tmp_path / "out" / "segs" / "student" / "2DBox_US_0.npz").stat().st_mtime_ns == kept
    save(victim, **case(1))
    assert evaluate(data, tmp_path / "out", model) == 0, "it may come back as it was"
    assert closing(capsys) == "3 files found: 3 scored, 0 skipped, 0 refused"


def spoil(victim: Path, how: str) -> None:
    if how == "cut short":
        os.truncate(victim, 900)
        return
    victim.unlink()
    if how == "folder":
        victim.mkdir()
    if how == "changed":
        save(victim, **case(5))


def test_a_report_of_the_version_before_goes_on(tmp_path: Path, model: Path, capsys: Said) -> None:
    data, output = good(tmp_path / "in"), tmp_path / "out"
    source = NpzFolder(data, SourceConfig())
    cases = {name: source.read(name).content_hash for name in ("2DBox_US_0", "2DBox_US_1")}
    made_from = {"model": file_hash(model), "cases": fingerprint(cases), "spacing_order": "zyx", "version": 1}
    output.mkdir()
    (output / "made_from.json").write_text(pd.Series(made_from).to_json())
    assert evaluate(data, output, model) == 2
    assert "rules.volume_prompts: expected 'sections', found 'propagated'" in capsys.readouterr().err
    as_before = ("--volume-prompts", "propagated")
    assert evaluate(data, output, model, *as_before) == 0
    (output / "made_from.json").write_text(pd.Series({**made_from, "cases": "other"}).to_json())
    assert evaluate(data, output, model, *as_before) == 2
    assert "cases: expected" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "verb"), [(predict, "predicted"), (evaluate, "scored")])
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_case_that_needs_too_much_memory_costs_itself(
    command: Callable[[Path, Path, Path], int],
    verb: str,
    error: Exception,
    tmp_path: Path,
    model: Path,
    capsys: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from medsam_core.inference.predictor import Predictor

    wide = case(gts=np.ones((24, 60), np.uint8), imgs=np.zeros((24, 60), np.uint8))
    save(good(tmp_path / "in") / "2DBox_US_wide.npz", **wide)
    answer = Predictor.predict

    def limited(self: Predictor, imgs: Array, *more: object, **named: object) -> object:
        if imgs.shape[1] == 60:
            raise error
        return answer(self, imgs, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Predictor, "predict", limited)
    assert command(tmp_path / "in", tmp_path / "out", model) == (1 if command is predict else 0)
    said = capsys.readouterr().out
    assert "refused 2DBox_US_wide" in said
    assert said.splitlines()[-1] == f"3 files found: 2 {verb}, 0 skipped, 1 refused (named above)"


def test_a_case_that_memory_cannot_hold_is_refused_on_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    save(tmp_path / "2DBox_US_a.npz", **case())
    monkeypatch.setattr(npz_source, "read_array", full)
    with pytest.raises(BadSampleError, match="fits the free memory") as caught:
        NpzFolder(tmp_path, SourceConfig()).read("2DBox_US_a")
    assert caught.value.code == "unreadable"


def test_a_folder_in_the_place_of_an_answer_costs_that_answer(tmp_path: Path, model: Path, capsys: Said) -> None:
    data = good(tmp_path / "in")
    (tmp_path / "out" / "2DBox_US_0.npz" / "x").mkdir(parents=True)
    assert predict(data, tmp_path / "out", model) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("refused 2DBox_US_0.npz: output: ")
    assert lines[-1] == "2 files found: 1 predicted, 0 skipped, 1 refused (named above)"


@pytest.mark.parametrize("command", [predict, evaluate])
def test_an_output_that_is_a_file_ends_the_command_in_one_line(
    command: Callable[[Path, Path, Path], int], tmp_path: Path, model: Path, capsys: Said
) -> None:
    (tmp_path / "out").write_text("kept")
    for output in (tmp_path / "out", tmp_path / "out" / "below"):
        assert command(good(tmp_path / "in"), output, model) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("medsam "))
        assert str(tmp_path / "out") in line
    assert (tmp_path / "out").read_text() == "kept"


@pytest.mark.parametrize("command", [predict, evaluate])
@pytest.mark.parametrize("number", [28, 13, 30, 122])
def test_what_every_file_would_fail_of_ends_the_command(
    command: Callable[[Path, Path, Path], int],
    number: int,
    tmp_path: Path,
    model: Path,
    capsys: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_file: object, **_: object) -> None:
        raise OSError(number, os.strerror(number))

    data = good(tmp_path / "in")
    monkeypatch.setattr(np, "savez_compressed", full)
    assert command(data, tmp_path / "out", model) == 2
    assert os.strerror(number) in capsys.readouterr().err


def serving(*_: object) -> None:
    """Stand for the server that replaces the process."""
    raise SystemExit("serving")


def test_commands_given_a_folder_need_no_folder_of_the_profile(
    tmp_path: Path, model: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSAM_PROFILE", "real")
    monkeypatch.delenv("MEDSAM_DATA", raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    data = good(tmp_path / "in")
    assert predict(data, tmp_path / "answers", model) == 0
    assert evaluate(data, tmp_path / "report", model) == 0
    assert main(["init"]) == 0
    assert main(["caches"]) == 0
    capsys.readouterr()
    assert main(["summary"]) == 2
    assert "expected the ledger of a run" in capsys.readouterr().err
    monkeypatch.setattr(os, "execv", serving)
    with pytest.raises(SystemExit, match="serving"):
        main(["mlflow"])
    for command in (["sample"], ["verify", "--repair"], ["erase", "US/a"]):
        assert main(command) == 2
        assert "MEDSAM_DATA: profile 'real' reads a folder" in capsys.readouterr().err


@pytest.mark.parametrize("labelled", [0, 1])
def test_blank_labels_alone_are_told_and_still_reported(
    labelled: int, tmp_path: Path, model: Path, capsys: Said
) -> None:
    data = good(tmp_path / "in", labelled)
    for name in "ab":
        save(data / f"2DBox_US_{name}.npz", **case(gts=np.zeros((24, 28), np.uint8)))
    assert evaluate(data, tmp_path / "out", model) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("no case in the headline means has a label to score") for line in lines) == 1 - labelled
    assert lines[-1] == f"{2 + labelled} files found: {2 + labelled} scored, 0 skipped, 0 refused"
    assert len(set(pd.read_csv(tmp_path / "out" / "cases.csv")["case_id"])) == 2 + labelled
    assert (tmp_path / "out" / "comparison.csv").is_file()


def test_files_without_labels_are_counted_and_named(tmp_path: Path, model: Path, capsys: Said) -> None:
    data = good(tmp_path / "in")
    for name in "ab":
        save(data / f"2DBox_US_{name}.npz", imgs=case()["imgs"])
    assert evaluate(data, tmp_path / "out", model) == 0
    assert closing(capsys) == "4 files found: 2 scored, 2 skipped (no gts: 2), 0 refused"
    table = pd.read_csv(tmp_path / "out" / "not_scored.csv")
    assert table["file"].tolist() == ["2DBox_US_a", "2DBox_US_b"]


def test_images_and_labels_in_two_files_are_told_apart_from_none(tmp_path: Path, model: Path, capsys: Said) -> None:
    for number in range(2):
        arrays = case(number)
        save(tmp_path / "in" / "imgs" / f"2DBox_US_{number}.npz", imgs=arrays["imgs"])
        save(tmp_path / "in" / "gts" / f"2DBox_US_{number}.npz", gts=arrays["gts"])
    assert evaluate(tmp_path / "in", tmp_path / "out", model) == 2
    said = capsys.readouterr()
    assert "imgs and gts of 2 cases lie in separate files of one name, such as 2DBox_US_0: put imgs and gts" in said.out
    assert "found none. imgs and gts of 2 cases lie in separate files" in said.err
    assert "4 files found: 0 scored, 2 skipped (no gts: 2), 2 refused" in said.err


@pytest.mark.parametrize("command", [evaluate, predict])
def test_arrays_in_npy_files_are_answered_with_how_to_store_them(
    command: Callable[[Path, Path, Path], int], tmp_path: Path, model: Path, capsys: Said
) -> None:
    for name in ("imgs", "gts"):
        (tmp_path / "in" / name).mkdir(parents=True)
        np.save(tmp_path / "in" / name / "US_0.npy", case()["imgs"])
    assert command(tmp_path / "in", tmp_path / "out", model) == 2
    assert "2 arrays lie in npy files of their own: put imgs and" in capsys.readouterr().err


def test_files_below_the_input_are_counted_and_not_answered(tmp_path: Path, model: Path, capsys: Said) -> None:
    good(good(tmp_path / "in") / "below", 3)
    assert predict(tmp_path / "in", tmp_path / "out", model) == 0
    assert closing(capsys).startswith("5 files found: 2 predicted, 3 skipped (in a folder below --input")
    assert predict(good(tmp_path / "only" / "US").parent, tmp_path / "out", model) == 2
    assert "give the one of the folders below it that holds imgs: US" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spacing_zyx", "backwards"),
    [
        ((0.7, 0.7, 5.0), True),
        ((0.7, 0.703, 2.5), True),
        ((0.7, 0.8, 5.0), True),
        ((1.0, 1.0, 0.5), True),
        ((5.0, 0.7, 0.7), False),
        ((1.0, 1.0, 1.0), False),
        ((0.5, 1.0, 1.0), False),
        ((3.0, 1.0, 1.2), False),
        ((2.5, 0.7, 1.5), False),
        ((float("nan"),) * 3, False),
    ],
)
def test_spacing_speaks_for_the_other_order_only_where_it_does(
    spacing_zyx: tuple[float, float, float], backwards: bool
) -> None:
    assert speaks_backwards(np.array([spacing_zyx])).tolist() == [backwards]


def test_spacing_in_the_other_order_is_warned_of_and_can_be_stated(tmp_path: Path, model: Path, capsys: Said) -> None:
    reports = {}
    for name, spacing, order in (("zyx", [5, 0.7, 0.7], []), ("xyz", [0.7, 0.7, 5], ["--spacing-order", "xyz"])):
        save(tmp_path / name / "3DBox_CT_0.npz", **volume(spacing))
        assert evaluate(tmp_path / name, tmp_path / f"out_{name}", model, *order) == 0
        assert "warning: spacing" not in capsys.readouterr().out
        reports[name] = pd.read_csv(tmp_path / f"out_{name}" / "comparison.csv")
    pd.testing.assert_frame_equal(reports["zyx"], reports["xyz"])
    assert evaluate(tmp_path / "xyz", tmp_path / "out", model) == 0
    assert "1 of 1 volumes fits the order xyz better than zyx" in capsys.readouterr().out
    assert evaluate(tmp_path / "xyz", tmp_path / "out", model, "--spacing-order", "xyz") == 2, "another reading"


def test_a_model_that_an_uri_does_not_name_is_one_line(tmp_path: Path, model: Path, capsys: Said) -> None:
    for uri in ("models:/nothing@champion", "models:/nothing/1", "runs:/nothing/model", "nonsense:/x"):
        assert predict(good(tmp_path / "in"), tmp_path / "out", uri) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith(f"medsam predict: {uri}: expected a model in ")
        assert not [line for line in lines if "Traceback" in line]


def test_a_tally_counts_every_file_once() -> None:
    said: list[str] = []
    tally = Tally(said.append)
    tally.skip("no gts", ["a", "b"])
    tally.skip_listed(pd.DataFrame({"reason": ["hidden"], "count": [7], "examples": [".a, .b"]}))
    with tally.refusing("c"):
        raise BadSampleError("code", "expected, found")
    tally.done += 4
    assert said == ["skipped .a, .b: hidden", "refused c: code: expected, found"]
    assert tally.line("scored") == "14 files found: 4 scored, 9 skipped (hidden: 7, no gts: 2), 1 refused (named above)"
    with pytest.raises(ZeroDivisionError), tally.refusing("d"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("command", "told"),
    [("predict", ["Exit status: 0 all answered"]), ("evaluate", ["--spacing-order", "not_scored.csv", "Exit status"])],
)
def test_help_tells_of_what_a_folder_ends_in(command: str, told: list[str], capsys: Said) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = capsys.readouterr().out
    assert [words for words in told if words not in said] == []
