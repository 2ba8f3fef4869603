"""A source format as an installed package would bring it: files of three arrays, one after the other."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medsam_core.synthetic import sample_cases
from storage.base.fingerprints import array_hash
from storage.sources.case import Case
from storage.sources.source import Listing, Reading, SourceConfig, Use, modality_of_path

ENDING = ".toy"


@dataclass(frozen=True)
class ToyFolder:
    """Every file below a folder that ends in `.toy`: image, labels and spacing, which is empty for images."""

    root: Path
    config: SourceConfig

    @property
    def reading(self) -> Reading:
        return Reading("toy 1")

    def list(self) -> Listing:
        paths = sorted(self.root.rglob(f"*{ENDING}"))
        rows = [(p.relative_to(self.root).as_posix().removesuffix(ENDING), p.stat()) for p in paths]
        columns = ["case_id", "n_bytes", "mtime_ns", "ctime_ns"]
        values = [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in rows]
        return Listing(pd.DataFrame(values, columns=columns), pd.DataFrame(columns=["path", "reason"]))

    def modality(self, case_id: str) -> str:
        return modality_of_path(case_id, self.root)

    def memory(self, case_id: str, n_bytes: int, at_ease: int) -> int:
        return 2 * n_bytes

    def read(self, case_id: str, use: Use = Use.LABELS) -> Case:
        with (self.root / f"{case_id}{ENDING}").open("rb") as file:
            imgs, gts, spacing = (np.lib.format.read_array(file, allow_pickle=False) for _ in range(3))
        zyx = tuple(spacing.tolist()) if len(spacing) else None
        digest = array_hash({"imgs": imgs, "gts": gts, "spacing": spacing})
        return Case(imgs, zyx is not None, gts, None, zyx, digest)


def write_toy_sample(root: Path) -> int:
    """Write the synthetic sample in this format; return the number of cases."""
    count = 0
    for case in sample_cases(seed=5, cases_per_modality=4, volumes_per_modality=1):
        path = (root / case.path).with_suffix(ENDING)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for array in (case.arrays["imgs"], case.arrays["gts"], case.arrays.get("spacing", np.zeros(0))):
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
        count += 1
    return count
