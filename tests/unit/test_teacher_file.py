"""Which file a run takes the teacher's weights from, what it is told where there is none, and what is said of them."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import numpy as np
import pytest
import torch
from dagster._core.errors import DagsterUserCodeProcessError

from medsam_core.models import publications
from medsam_core.models.checkpoints import load_model, read_metadata
from medsam_core.models.publications import LITE_MEDSAM, PUBLICATIONS, STAND_IN, Publication
from pipelines import cli
from pipelines.base import teacher_file as choosing
from pipelines.base.settings import InputError, Settings, read_settings
from pipelines.base.teacher_file import teacher_file
from pipelines.base.workspace import Workspace
from pipelines.evaluation.report_files import MODEL, read_facts
from pipelines.runs.executors import TAUGHT, OneRunAtATime
from pipelines.teacher.assets import teacher_checkpoint
from pipelines.teacher.provenance import given_facts, teacher_facts, told
from pipelines.teacher.tasks import make_teacher
from storage.base.fingerprints import file_hash
from storage.base.references import ArtefactRef
from tests.models import lite_medsam_state

PROFILE = """\
extends: sample
name: lite
student: {backbone: lite_medsam, image_size: 64}
teacher: {kind: lite_medsam, image_size: 64}
"""

RELEASE = ArtefactRef("release", "r", {}, reused=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as LiteMedSAM's is published, with weights that are a function of their names."""
    path = tmp_path_factory.mktemp("weights") / "lite_medsam.pth"
    torch.save(lite_medsam_state(), path)
    return path


@pytest.fixture
def published(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Publication:
    """Know that file as the published one."""
    wanted = replace(LITE_MEDSAM, n_bytes=checkpoint.stat().st_size, sha256=file_hash(checkpoint))
    known = {**PUBLICATIONS, "lite_medsam": wanted}
    for module in (publications, choosing, cli):
        monkeypatch.setattr(module, "PUBLICATIONS", known)
    return wanted


def settings(tmp_path: Path, **changes: str) -> Settings:
    profile = tmp_path / "lite.yaml"
    profile.write_text(PROFILE)
    return read_settings({"MEDSAM_HOME": str(tmp_path / "home"), "MEDSAM_PROFILE": str(profile), **changes})


def place(tmp_path: Path, checkpoint: Path) -> Path:
    path = tmp_path / "home" / "weights" / "lite_medsam.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(checkpoint.read_bytes())
    return path


def refusal(found: Settings) -> str:
    with pytest.raises(InputError) as caught:
        teacher_file(found)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_placed_file_is_taken(checkpoint: Path, published: Publication, tmp_path: Path) -> None:
    path = place(tmp_path, checkpoint)
    assert teacher_file(settings(tmp_path)) == path


def test_where_none_is_placed_a_run_is_told_what_brings_it(tmp_path: Path) -> None:
    said = refusal(settings(tmp_path))
    path = tmp_path / "home" / "weights" / "lite_medsam.pth"
    assert said.startswith(
        f"teacher lite_medsam: expected its published weights in {path}, found none; bring them with"
    )
    assert "`medsam teacher lite_medsam`" in said


def test_an_altered_file_is_not_taken(checkpoint: Path, published: Publication, tmp_path: Path) -> None:
    path = place(tmp_path, checkpoint)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "found another file there; bring them with `medsam teacher lite_medsam`" in refusal(settings(tmp_path))


def test_a_given_file_or_url_goes_before_the_placed_one(
    checkpoint: Path, published: Publication, tmp_path: Path
) -> None:
    place(tmp_path, checkpoint)
    other = tmp_path / "other.pth"
    other.touch()
    assert teacher_file(settings(tmp_path, MEDSAM_TEACHER=str(other))) == other
    assert teacher_file(settings(tmp_path, MEDSAM_TEACHER="https://host/a.pth")) == "https://host/a.pth"
    assert "found no file" in refusal(settings(tmp_path, MEDSAM_TEACHER=str(tmp_path / "gone.pth")))
    assert "found a folder" in refusal(settings(tmp_path, MEDSAM_TEACHER=str(tmp_path)))


def test_other_profiles_take_what_they_took(tmp_path: Path) -> None:
    home = {"MEDSAM_HOME": str(tmp_path)}
    shipped = teacher_file(read_settings(home))
    assert isinstance(shipped, Path)
    assert shipped.name == "stand_in_128.safetensors"
    paper = read_settings({**home, "MEDSAM_PROFILE": "paper"}, needs_data=False)
    assert "profile 'paper' needs the weights of medsam_vit_b (medsam_vit_b.pth), found nothing set" in refusal(paper)


class Inner(dg.Executor):
    """An executor that remembers that it was asked."""

    def __init__(self) -> None:
        self.asked = False

    @property
    def retries(self) -> Any:
        raise NotImplementedError

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        self.asked = True
        yield from ()


def begins(found: Settings, **tags: str) -> bool:
    """Return whether a run of one step with these tags comes to its first step."""
    inner = Inner()
    step = SimpleNamespace(tags=tags)
    plan: Any = SimpleNamespace(get_all_steps_in_topo_order=lambda: [step])
    with dg.DagsterInstance.ephemeral() as instance:
        context: Any = SimpleNamespace(run_id="this", instance=instance, log=logging.getLogger("run"))
        list(OneRunAtATime(inner, found).execute(context, plan))
    return inner.asked


def test_a_run_that_needs_weights_and_has_none_ends_before_its_first_step(
    checkpoint: Path, published: Publication, tmp_path: Path
) -> None:
    found = settings(tmp_path)
    assert begins(found), "a run that does not need them begins"
    with pytest.raises(DagsterUserCodeProcessError) as refused:
        begins(found, **TAUGHT)
    (said,) = refused.value.user_code_process_error_infos
    assert said.stack == []
    assert said.message == refusal(found)
    place(tmp_path, checkpoint)
    assert begins(found, **TAUGHT)


def test_the_step_that_reads_the_weights_says_so() -> None:
    assert TAUGHT.items() <= teacher_checkpoint.op.tags.items()


def not_launched(*_: object) -> None:
    raise AssertionError("no trainer is needed")


def test_the_teacher_is_described_where_it_is_recorded(
    checkpoint: Path, published: Publication, tmp_path: Path
) -> None:
    place(tmp_path, checkpoint)
    space = Workspace(settings(tmp_path))
    made = make_teacher(space, RELEASE, not_launched, lambda _line: None)
    facts = published.facts()
    assert made.made == 1
    assert {**facts, "kind": "lite_medsam"}.items() <= made.notes.items()
    model = space.artefacts.get(made.value).path / "model.safetensors"
    assert facts.items() <= read_metadata(model).items()
    own = load_model(model).state_dict()
    assert all(torch.equal(own[key], value) for key, value in lite_medsam_state().items())
    assert teacher_facts(space, made.fingerprint) == facts
    again = make_teacher(space, RELEASE, not_launched, lambda _line: None)
    assert (again.made, again.fingerprint, again.notes) == (0, made.fingerprint, made.notes)


def test_a_given_file_that_nobody_knows_is_called_so(checkpoint: Path, tmp_path: Path) -> None:
    facts = given_facts(checkpoint, file_hash(checkpoint))
    assert facts["weights"] == "lite_medsam.pth"
    assert facts["trained_on"] == facts["licence"] == "not known: no file with this SHA-256 is recorded"


def test_the_shipped_stand_in_is_known() -> None:
    with as_file(files("medsam_core") / "weights" / STAND_IN.file) as path:
        assert path.stat().st_size == STAND_IN.n_bytes
        assert given_facts(path, file_hash(path)) == STAND_IN.facts()
    assert "synthetic cases of this project alone" in told(STAND_IN.facts())


def test_stages_that_trained_a_teacher_here_are_told(checkpoint: Path, published: Publication, tmp_path: Path) -> None:
    place(tmp_path, checkpoint)
    space = Workspace(settings(tmp_path))
    given = make_teacher(space, RELEASE, not_launched, lambda _line: None).fingerprint
    tuned = space.artefacts.make("model", {"stage": "tuning", "starts_from": given}, lambda _folder: {}).fingerprint
    more = space.artefacts.make("model", {"stage": "more", "starts_from": tuned}, lambda _folder: {}).fingerprint
    expected = {**published.facts(), "trained_here": "tuning, more on the training patients"}
    assert teacher_facts(space, more) == expected
    assert "; trained here: tuning, more on the training patients" in told(expected)


def test_what_earlier_versions_recorded_of_a_teacher_is_enough(published: Publication, tmp_path: Path) -> None:
    space = Workspace(settings(tmp_path))
    info = {"sha256": published.sha256, "source": "lite_medsam.pth"}
    made = space.artefacts.make("model", {"sha256": published.sha256}, lambda _folder: info)
    assert teacher_facts(space, made.fingerprint) == published.facts()


def test_of_a_teacher_that_is_gone_nothing_is_said(tmp_path: Path) -> None:
    space = Workspace(settings(tmp_path))
    orphan = space.artefacts.make("model", {"stage": "tuning", "starts_from": "0" * 64}, lambda _folder: {})
    bare = space.artefacts.make("model", {"made": "elsewhere"}, lambda _folder: {})
    for fingerprint in ("t", orphan.fingerprint, bare.fingerprint):
        assert teacher_facts(space, fingerprint) == {}


def test_it_is_written_as_a_model_that_predicts(
    checkpoint: Path,
    published: Publication,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MEDSAM_HOME", str(tmp_path / "home"))
    model = tmp_path / "models" / "lite.safetensors"
    assert cli.main(["teacher", "lite_medsam", "--from", str(checkpoint), "-o", str(model)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Model: {model}"
    assert given_facts(model, file_hash(model)) == published.facts(), "also as a teacher it is known by its header"
    (tmp_path / "in").mkdir()
    imgs = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    np.savez(tmp_path / "in" / "2DBox_US_1.npz", imgs=imgs, boxes=np.array([[5, 5, 30, 30]]))
    assert cli.main(["predict", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", str(model)]) == 0
    with np.load(tmp_path / "out" / "2DBox_US_1.npz", allow_pickle=False) as answer:
        assert answer["segs"].shape == (40, 50)
    np.savez(tmp_path / "in" / "2DBox_US_1.npz", imgs=imgs, gts=np.eye(40, 50, dtype=np.uint8))
    capsys.readouterr()
    arguments = ["--data", str(tmp_path / "in"), "-o", str(tmp_path / "report"), "--model", str(model)]
    assert cli.main(["evaluate", *arguments]) == 0
    assert f"The model: {told(published.facts())}" in capsys.readouterr().out.splitlines()
    assert read_facts(tmp_path / "report", MODEL) == published.facts()
