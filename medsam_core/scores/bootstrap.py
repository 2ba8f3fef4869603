"""Means and their bootstrap intervals over patients. What belongs here: the bootstrap of one column of cases.

Not here: which columns and rows are averaged (`reporting`, `comparisons`).

Intervals are percentile bootstraps over patients, not cases, as a patient's cases are not independent (Davison
and Hinkley 1997, section 3.8). Draws depend on the seed and the modality alone, so all predictors see the same ones and
their differences are paired.
"""

import zlib

import numpy as np
import numpy.typing as npt
import pandas as pd

CONFIDENCE = 0.95
"""Confidence of the intervals."""

Floats = npt.NDArray[np.float64]


def draw_patients(patients: pd.Series, modality: str, resamples: int, seed: int) -> Floats:
    """Return how often each row counts in each draw, (1 + resamples, N).

    In the first draw every row counts once; the others are bootstrapped. With fewer than two patients there is nothing
    to draw from, and the others are NaN.
    """
    names, patient_of_row = np.unique(patients.to_numpy(dtype=str), return_inverse=True)
    draws = np.full((1 + resamples, len(names)), np.nan)
    draws[0] = 1
    if len(names) > 1:
        rng = np.random.default_rng([seed, zlib.crc32(modality.encode())])
        draws[1:] = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    drawn: Floats = draws[:, patient_of_row]
    return drawn


def drawn_means(part: pd.DataFrame, column: str, draws: Floats) -> Floats:
    """Return a column's mean over the rows that are not NaN in each draw, (1 + resamples,); NaN without any."""
    values = part[column].to_numpy(dtype=np.float64)
    known = ~np.isnan(values)
    counts = draws[:, known].sum(axis=1)
    sums = draws[:, known] @ values[known]
    means: Floats = np.divide(sums, counts, out=np.full(len(draws), np.nan), where=counts > 0)
    return means


def interval(drawn: Floats) -> tuple[float, float, float]:
    """Return the first draw's value, which is the estimate, and the percentile interval of the others."""
    usable = drawn[1:][~np.isnan(drawn[1:])]
    if not len(usable) or np.isnan(drawn[0]):
        return float(drawn[0]), float("nan"), float("nan")
    low, high = np.quantile(usable, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(drawn[0]), float(low), float(high)
