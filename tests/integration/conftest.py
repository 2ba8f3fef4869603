"""What the integration tests share: one finished run of the tiny profile, which none of them changes."""

from dataclasses import dataclass

import pandas as pd
import pytest

from tests.integration.deployment import Deployment, deploy


@dataclass(frozen=True)
class Finished:
    """A deployment after one run of the whole pipeline.

    Attributes:
        deployment: The deployment.
        ledger: What that run made, indexed by asset.
        run_id: Dagster's id of that run.
    """

    deployment: Deployment
    ledger: pd.DataFrame
    run_id: str


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Run `full_pipeline` once, from nothing, by the literal command. Tests that change state work on a copy."""
    deployment = deploy(tmp_path_factory.mktemp("finished"))
    ledger = deployment.run_pipeline()
    (file,) = (deployment.state / "runs").glob("*.jsonl")
    return Finished(deployment, ledger, file.stem)
