"""Synthetic cases of the challenge's eleven modalities, in its npz layout, from a seed alone.

What belongs here: outlines, placement, appearance and files of the data the `sample` profile runs on and the stand-in
teacher learns from. Not here: any real data, its reading, or anything learnt.

Knowing an object's box alone helps as much here as on real cases: the ellipse inscribed in the tight box has a mean DSC
between 0.70 and 0.80 in every modality, and so has the ellipsoid in 3D. The outline itself is plainly visible. So a
model that is better than the ellipse has looked at the image.
"""

from medsam_core.synthetic.cases import MODALITIES, VOLUMETRIC, Case, make_case
from medsam_core.synthetic.sample import SampleCase, sample_cases, write_sample

__all__ = ["MODALITIES", "VOLUMETRIC", "Case", "SampleCase", "make_case", "sample_cases", "write_sample"]
