"""Values between steps: JSON files, found again by another process, never pickles."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.resource_definition import ScopedResourcesBuilder

from pipelines.base.json_io import JsonIOManager
from storage.base.errors import IntegrityError

VALUE = {"fingerprint": "ab", "info": {"dice": 0.5, "names": ["é", None, True]}, "made": 3}


NO_RESOURCES = ScopedResourcesBuilder().build(None)
"""Given to a context so that it does not make a Dagster instance to find out that it needs none."""


def output(key: list[str] | None = None, **step: Any) -> dg.OutputContext:
    where = {"run_id": "run1", "step_key": "graph.write", "name": "result", **step}
    return dg.OutputContext(asset_key=dg.AssetKey(key) if key else None, resources=NO_RESOURCES, **where)


def asset_input(*key: str) -> dg.InputContext:
    return dg.InputContext(asset_key=dg.AssetKey(key), resources=NO_RESOURCES)


def reading(upstream: dg.OutputContext) -> dg.InputContext:
    return dg.InputContext(upstream_output=upstream, resources=NO_RESOURCES)


@pytest.fixture
def manager(tmp_path: Path) -> JsonIOManager:
    return JsonIOManager(folder=str(tmp_path))


def test_a_value_comes_back_equal_and_lies_in_one_json_file(manager: JsonIOManager, tmp_path: Path) -> None:
    context = output(["proposed", "student"])
    manager.handle_output(context, VALUE)
    assert manager.load_input(reading(context)) == VALUE
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file == tmp_path / "assets" / "proposed" / "student.json"
    assert json.loads(file.read_text()) == VALUE


def test_an_asset_is_read_by_its_key_alone_as_when_it_is_made_from_the_page(manager: JsonIOManager) -> None:
    manager.handle_output(output(["slice_index"]), VALUE)
    assert JsonIOManager(folder=manager.folder).load_input(asset_input("slice_index")) == VALUE


def test_the_next_materialisation_replaces_the_value(manager: JsonIOManager) -> None:
    context = output(["a"])
    manager.handle_output(context, {"n": 1})
    manager.handle_output(context, {"n": 2})
    assert manager.load_input(reading(context)) == {"n": 2}


def test_steps_of_runs_and_mapped_outputs_do_not_meet(manager: JsonIOManager) -> None:
    contexts = [
        output(),
        output(run_id="run2"),
        output(step_key="graph.publish"),
        output(mapping_key="batch_0000"),
        output(mapping_key="batch_0001"),
        output(["graph", "write", "result"]),
    ]
    for number, context in enumerate(contexts):
        manager.handle_output(context, number)
    assert [manager.load_input(reading(context)) for context in contexts] == list(range(len(contexts)))


@pytest.mark.parametrize("wrong", [{"path": Path()}, {"set": {1}}, {"score": float("nan")}, object()])
def test_what_is_no_plain_json_is_refused_and_names_its_output(
    manager: JsonIOManager, tmp_path: Path, wrong: object
) -> None:
    with pytest.raises(TypeError, match="expected a plain JSON value from result, found"):
        manager.handle_output(output(), wrong)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_refused_value_leaves_the_last_one(manager: JsonIOManager) -> None:
    context = output(["a"])
    manager.handle_output(context, VALUE)
    with pytest.raises(TypeError):
        manager.handle_output(context, {"bad": object()})
    assert manager.load_input(reading(context)) == VALUE


def test_a_missing_value_names_the_asset_to_materialise(manager: JsonIOManager) -> None:
    with pytest.raises(FileNotFoundError, match="materialise slice_store/CT first"):
        manager.load_input(asset_input("slice_store", "CT"))


def test_a_damaged_value_is_an_integrity_error_that_names_the_file(manager: JsonIOManager, tmp_path: Path) -> None:
    context = output(["a"])
    manager.handle_output(context, VALUE)
    file = tmp_path / "assets" / "a.json"
    file.write_text(file.read_text()[:-9])
    with pytest.raises(IntegrityError, match=r"a\.json: expected JSON"):
        manager.load_input(reading(context))


def test_nothing_is_written_for_nothing(manager: JsonIOManager, tmp_path: Path) -> None:
    manager.handle_output(output(), None)
    assert not any(tmp_path.iterdir())
