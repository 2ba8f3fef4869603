"""Modality names: every spelling of the challenge's files, and what wins where two are stated."""

import pytest

from storage.base.modalities import MODALITIES, VOLUMETRIC, modality_of, modality_of_word


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("2DBox_US_0525", "US"),
        ("2DBox_X-Ray_0053", "XRay"),
        ("2DBox_Dermoscopy_0003", "Dermoscopy"),
        ("2DBox_Endoscopy_0086", "Endoscopy"),
        ("2DBox_Fundus_0003", "Fundus"),
        ("2DBox_Microscope_0008", "Microscopy"),
        ("3DBox_CT_0566", "CT"),
        ("3DBox_MR_0621", "MR"),
        ("3DBox_PET_0001", "PET"),
        ("2D_X-Ray_Teeth_cate1", "XRay"),
        ("X-Ray_Teeth_1", "XRay"),
        ("XRay_Pneumothorax-Masks_204_train_1", "XRay"),
        ("CXR_12", "XRay"),
        ("XR_12", "XRay"),
        ("x ray 12", "XRay"),
        ("PET_Lesion_psma_1", "PET"),
        ("MR_totalseg_1", "MR"),
        ("MRI-1", "MR"),
        ("CT_AbdomenCT-1K_3", "CT"),
        ("CT-001", "CT"),
        ("ct001", "CT"),
        ("OCT_1", "OCT"),
        ("2DBox_OCT_CT_1", "OCT"),
        ("Ultra_breast", "US"),
        ("breast_ultrasound", "US"),
        ("Mamm_1", "Mammography"),
        ("Dermoscope_1", "Dermoscopy"),
        ("Endoscope.1", "Endoscopy"),
        ("PET-CT_1", "PET"),
    ],
)
def test_spellings(name: str, modality: str) -> None:
    assert modality_of_word(name) == modality


@pytest.mark.parametrize("name", ["", "case_1", "octopus", "bus_3", "factor", "mrs_1", "X_1", "ray_1", "2DBox_0001"])
def test_a_spelling_inside_a_word_does_not_count(name: str) -> None:
    assert modality_of_word(name) is None


@pytest.mark.parametrize("modality", MODALITIES)
def test_canonical_names_are_spellings_of_themselves(modality: str) -> None:
    for name in (modality, modality.lower(), modality.upper(), f"{modality}_0001", f"3DBox_{modality}_1"):
        assert modality_of_word(name) == modality


def test_order_is_that_of_sorted_tables() -> None:
    assert list(MODALITIES) == sorted(MODALITIES)
    assert set(MODALITIES) > VOLUMETRIC


def test_the_name_goes_before_folders_and_the_nearest_folder_first() -> None:
    assert modality_of("US_1", ["MR", "CT"]) == "US"
    assert modality_of("case_1", ["part 3", "MR", "CT"]) == "MR"
    assert modality_of("case_1", ["part 3", "training"]) is None
    assert modality_of("case_1") is None
