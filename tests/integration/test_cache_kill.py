"""Caching killed at ten moments, and two at once: the cache ends in the same bytes, and nobody meets a torn one."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from medsam_core.learning.stages import FINETUNING
from pipelines.base.values import TeacherRef, to_json
from pipelines.base.variants import PROPOSED
from pipelines.teacher import caches
from pipelines.teacher.cache_user import variant_user
from pipelines.teacher.caches import CacheWork
from storage.answers.teacher_cache import TeacherCache
from storage.base.errors import StorageError
from tests.integration.conftest import Finished
from tests.integration.deployment import Deployment
from tests.unit.store_helpers import files_below

pytestmark = pytest.mark.slow

CACHING = """
import json, sys
from pipelines.base.settings import read_settings
from medsam_core.learning.stages import FINETUNING
from pipelines.teacher import caches
from pipelines.teacher.cache_user import variant_user
from pipelines.base.variants import PROPOSED
from pipelines.base.workspace import Workspace
from pipelines.base.values import TeacherRef, from_json
from storage.base.references import ArtefactRef
user = variant_user(PROPOSED, FINETUNING)
space, kinds = Workspace(read_settings()), (TeacherRef, ArtefactRef, ArtefactRef)
inputs = tuple(from_json(kind, value, "input") for kind, value in zip(kinds, json.loads(sys.argv[1]), strict=True))
import medsam_core.imaging.rendering, medsam_core.models.checkpoints, pipelines.training.trainer
say = lambda text: print(text, flush=True)
say("begun")
batches = caches.plan_cache(space, user, inputs, say)
written = [caches.write_cache_parts(space, user, inputs, batch, say) for batch in batches]
caches.publish_cache(space, user, inputs, written)
"""
"""What the asset `teacher_logits` does, in one process that imports first what it will need."""


def inputs_of(deployment: Deployment) -> caches.Inputs:
    plan, release = (deployment.value(name) for name in ("finetuning_plan", "dataset_release"))
    return deployment.value("teacher_checkpoint", TeacherRef), plan, release


def start(deployment: Deployment) -> "subprocess.Popen[str]":
    """Start the caching and return once it has begun its work."""
    process = subprocess.Popen(
        [sys.executable, "-c", CACHING, json.dumps([to_json(value) for value in inputs_of(deployment)])],
        env=deployment.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def ended(process: "subprocess.Popen[str]") -> float:
    """Wait for a caching to end well; return the seconds."""
    begun = time.monotonic()
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return time.monotonic() - begun


@pytest.fixture
def work(finished: Finished, tmp_path: Path) -> CacheWork:
    """A cache to be made: of the finished run's plan, in state of its own, cut into a part for each slot pair."""
    copied = finished.deployment.moved_to(tmp_path / "home")
    profile = tmp_path / "parts.yaml"
    profile.write_text(
        f"extends: {copied.profile}\ncache: {{slots_per_chunk: 1, slots_per_shard: 2, parts_per_step: 3}}\n"
    )
    deployment = Deployment(copied.home, str(profile), copied.changes)
    made = CacheWork(deployment.workspace, variant_user(PROPOSED, FINETUNING), inputs_of(deployment))  # type: ignore[arg-type]
    shutil.rmtree(deployment.workspace.settings.state / "artefacts" / "cache_probe")
    assert made.spec.n_parts == 16
    return made


def deployment_of(work: CacheWork) -> Deployment:
    settings = work.workspace.settings
    return Deployment(settings.home, settings.profile_name)


def reads_whole_or_not_at_all(work: CacheWork, expected: npt.NDArray[np.float32]) -> bool:
    """Return whether a published cache is there; if so, all of it is right."""
    try:
        cache = TeacherCache(work.root, work.spec.made_from)
    except StorageError:
        return False
    np.testing.assert_array_equal(cache.read("probabilities", 0, len(cache)), expected)
    return True


def test_ten_kills_end_in_the_bytes_of_an_undisturbed_caching(work: CacheWork) -> None:
    deployment, folder = deployment_of(work), Path(work.root.url)
    seconds = ended(start(deployment))
    undisturbed = files_below(folder)
    cache = TeacherCache(work.root)
    expected = cache.read("probabilities", 0, len(cache))
    shutil.rmtree(folder)

    rng = random.Random(3)
    killed, partial = 0, 0
    while killed < 10:
        process = start(deployment)
        assert process.stdout is not None
        # Of what a run says: parts to make, the probe's result, then a line for each part.
        for _ in range(rng.choice([0, 2, 3, 3, 4])):
            process.stdout.readline()
        time.sleep(rng.uniform(0, seconds / 20))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            killed += 1
            partial += 0 < len(list(folder.glob("parts/*.json"))) < work.spec.n_parts
        if reads_whole_or_not_at_all(work, expected):
            assert files_below(folder) == undisturbed
            shutil.rmtree(folder)
    assert killed == 10
    assert partial >= 3, "kills were meant to fall among the parts"
    ended(start(deployment))
    assert files_below(folder) == undisturbed


def test_of_two_cachings_at_once_each_ends_well_or_says_why_not(work: CacheWork) -> None:
    deployment, folder = deployment_of(work), Path(work.root.url)
    both = [start(deployment) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes
    for code, error in zip(codes, errors, strict=True):
        assert code == 0 or ("BusyError" in error and "process" in error), error
    together = files_below(folder)
    shutil.rmtree(folder)
    ended(start(deployment))
    assert files_below(folder) == together
