"""`medsam verify` on the state of a finished run: every kind of damage told, repaired or made again by the next run."""

import sys
from logging import WARNING
from pathlib import Path

import pytest

from tests.integration.conftest import Finished
from tests.integration.deployment import DAGSTER, Deployment
from tests.unit.store_helpers import files_below


@pytest.fixture
def own(finished: Finished, tmp_path: Path) -> Deployment:
    """A copy of the finished run's state that a test may change."""
    return finished.deployment.moved_to(tmp_path / "home")


def kept(deployment: Deployment) -> dict[str, bytes]:
    """Return all that a run makes and a later one reuses, but for what names this deployment's folders."""
    found = {}
    for name in ("stores", "artefacts", "caches"):
        for key, data in files_below(deployment.state / name).items():
            own = (".lock", "job.json", "files.json", "done.json", ".checked.json", "checkpoint.pt")
            passing = key.endswith(own) or "pins/" in key
            if not passing and ".locks/" not in key and "cache_probe" not in key:
                found[f"{name}/{key}"] = data
    return found


def first_shard(deployment: Deployment, answers: str) -> Path:
    """Return the file of the first shard of a kind of answers."""
    return min(path for path in (deployment.state / "caches" / answers).glob("*/*/c/0/**/*") if path.is_file())


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def verify(deployment: Deployment, *arguments: str) -> tuple[int, str]:
    status = deployment.start(sys.executable, "-m", "pipelines.cli", "verify", *arguments).wait()
    return status, (deployment.home / "output.txt").read_text()


def test_whatever_is_damaged_is_told_and_exactly_that_is_made_again(own: Deployment) -> None:
    """Weights, a plan, a report's table, a prediction, a shard of a cache and one of a store."""
    before = kept(own)
    assert verify(own)[0] == 0
    segs = min((own.folder("proposed/predictions") / "segs").rglob("*.npz"))
    shard = first_shard(own, "embeddings")
    for path in (own.folder("proposed/student_finetuned") / "model.safetensors", segs, shard):
        flipped(path)
    flipped(own.state / "stores" / "CT" / "imgs" / "c" / "0")
    (own.folder("distillation_plan") / "slots.npy").unlink()
    (own.folder("proposed/evaluation_report") / "comparison.csv").write_text("modality\n")
    status, told = verify(own)
    assert status == 1
    for name in ("model.safetensors", "slots.npy", "comparison.csv", segs.name, "embeddings/c/0/0/0/0", "imgs/c/0"):
        assert name in told
    assert "6 damaged, 0 repaired or withdrawn, 6 left" in told
    status, told = verify(own, "--repair")
    assert (status, "6 damaged, 6 repaired or withdrawn, 0 left" in told) == (0, True)
    ledger = own.run_pipeline()
    assert set(ledger.index[ledger["made"] > 0]) == {
        "distillation_plan",
        "teacher_embeddings",
        "proposed/student_finetuned",
        "proposed/predictions",
        "proposed/evaluation_report",
    }
    assert kept(own) == before
    assert verify(own)[0] == 0


def test_a_run_heals_by_itself_what_it_meets_damaged(own: Deployment) -> None:
    before = kept(own)
    (own.folder("finetuning_plan") / "groups.npy").write_bytes(b"")
    (own.folder("proposed/student_distilled") / "model.safetensors").unlink()
    ledger = own.run_pipeline()
    assert set(ledger.index[ledger["made"] > 0]) == {"finetuning_plan", "proposed/student_distilled"}
    output = (own.home / "output.txt").read_text()
    assert "groups.npy: expected" in output
    assert "model.safetensors: expected" in output
    logged = [log.user_message for log in own.instance.all_logs(own.ledgers()[-1].stem) if log.level == WARNING]
    for name in ("groups.npy", "model.safetensors"):
        assert any(f"{name}: expected" in line and "it is not used" in line for line in logged), (name, logged)
    assert kept(own) == before


def test_the_job_that_verifies_caches_reads_every_byte(own: Deployment) -> None:
    for shard in (own.state / "caches" / "logits").glob("*/*/c/**/*"):
        if shard.is_file():
            flipped(shard)
    own.start(DAGSTER, "job", "execute", "-j", "verify_caches").wait()
    (run,) = own.instance.get_runs()
    found = {}
    for event in own.instance.all_logs(run.run_id):
        if event.dagster_event and event.dagster_event.event_type_value == "ASSET_CHECK_EVALUATION":
            check = event.dagster_event.asset_check_evaluation_data
            found[check.asset_key.to_user_string(), check.check_name] = check.passed
    assert found == {
        ("adaptation_embeddings", "is_whole"): True,
        ("adaptation_embeddings", "answers_recomputed"): True,
        ("teacher_embeddings", "is_whole"): True,
        ("teacher_embeddings", "answers_recomputed"): True,
        ("teacher_logits", "is_whole"): False,
        ("teacher_logits", "answers_recomputed"): False,
    }
    errors = [
        log for log in own.instance.all_logs(run.run_id) if log.dagster_event and log.dagster_event.is_step_failure
    ]
    assert not errors, "a check that finds damage is red; its step does not fail"
