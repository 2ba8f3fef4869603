"""Which cases a model was trained on is read from its present record and from that of earlier versions."""

from pathlib import Path

import pytest

from pipelines.training.training_cases import read_training_cases, training_cases_file


@pytest.mark.parametrize("name", ["training_cases.json", "seen_cases.json"])
def test_the_record_is_found_under_its_present_and_its_earlier_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"ab": "train"}')
    assert training_cases_file(tmp_path) == tmp_path / name
    assert read_training_cases(tmp_path / "model.safetensors") == {"ab": "train"}


def test_the_present_record_holds_where_both_lie_and_none_is_no_error(tmp_path: Path) -> None:
    assert training_cases_file(tmp_path) is None
    assert read_training_cases(tmp_path / "model.safetensors") == {}
    (tmp_path / "seen_cases.json").write_text('{"ab": "train"}')
    (tmp_path / "training_cases.json").write_text('{"ab": "test"}')
    assert read_training_cases(tmp_path / "model.safetensors") == {"ab": "test"}
