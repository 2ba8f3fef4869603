"""Values between steps: JSON files, found again by another process, never pickles."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.resource_definition import ScopedResourcesBuilder
from dagster._core.types.dagster_type import resolve_dagster_type

from pipelines.base.json_io import JsonIOManager
from pipelines.base.values import CacheRef, PartsMade
from storage.base.errors import IntegrityError
from storage.base.references import ArtefactRef

REFERENCE = ArtefactRef("release", "ab", {"slices": 3, "names": ["é", None, True]}, reused=True)

VALUE = {"fingerprint": "ab", "info": {"dice": 0.5, "names": ["é", None, True]}, "made": 3}


NO_RESOURCES = ScopedResourcesBuilder().build(None)
"""Given to a context so that it does not make a Dagster instance to find out that it needs none."""


def output(key: list[str] | None = None, **step: Any) -> dg.OutputContext:
    where = {"run_id": "run1", "step_key": "graph.write", "name": "result", **step}
    return dg.OutputContext(asset_key=dg.AssetKey(key) if key else None, resources=NO_RESOURCES, **where)


def asset_input(*key: str, kind: object = dict) -> dg.InputContext:
    return dg.InputContext(asset_key=dg.AssetKey(key), resources=NO_RESOURCES, dagster_type=resolve_dagster_type(kind))


def reading(upstream: dg.OutputContext, kind: object = dict) -> dg.InputContext:
    return dg.InputContext(
        upstream_output=upstream, resources=NO_RESOURCES, dagster_type=resolve_dagster_type(kind), name="input"
    )


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
    with pytest.raises(IntegrityError, match=r"a\.json: expected JSON, found a damaged file of .* again"):
        manager.load_input(reading(context))


def test_nothing_is_written_for_nothing(manager: JsonIOManager, tmp_path: Path) -> None:
    manager.handle_output(output(), None)
    assert not any(tmp_path.iterdir())


def test_a_typed_value_is_json_on_disk_and_itself_again_where_the_input_says_so(
    manager: JsonIOManager, tmp_path: Path
) -> None:
    context = output(["dataset_release"])
    manager.handle_output(context, REFERENCE)
    plain = {"kind": "release", "fingerprint": "ab", "info": REFERENCE.info, "reused": True}
    assert json.loads((tmp_path / "assets" / "dataset_release.json").read_text()) == plain
    assert manager.load_input(reading(context, ArtefactRef)) == REFERENCE
    assert manager.load_input(asset_input("dataset_release", kind=ArtefactRef)) == REFERENCE
    assert manager.load_input(reading(context)) == plain


def test_each_step_of_a_fan_in_is_read_as_what_the_list_holds(manager: JsonIOManager) -> None:
    context = output(mapping_key="batch_0000")
    manager.handle_output(context, PartsMade(("part-00000",)))
    assert manager.load_input(reading(context, list[PartsMade])) == PartsMade(("part-00000",))


def test_a_list_of_plain_items_stays_plain(manager: JsonIOManager) -> None:
    context = output(mapping_key="batch_0000")
    manager.handle_output(context, ["part-00000"])
    assert manager.load_input(reading(context, list[str])) == ["part-00000"]


def test_the_value_of_another_asset_than_the_input_expects_is_refused_by_name(manager: JsonIOManager) -> None:
    manager.handle_output(output(["teacher_logits"]), REFERENCE)
    with pytest.raises(IntegrityError, match=r"value of teacher_logits: expected CacheRef.*materialise teacher_logits"):
        manager.load_input(asset_input("teacher_logits", kind=CacheRef))


def test_facts_that_are_no_json_are_refused(manager: JsonIOManager, tmp_path: Path) -> None:
    for wrong in ({"path": Path()}, {"score": float("nan")}):
        with pytest.raises(TypeError, match="expected a plain JSON value from result, found ArtefactRef"):
            manager.handle_output(output(), ArtefactRef("model", "ab", wrong, reused=False))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_values_cross_the_steps_of_a_run_as_their_types(tmp_path: Path) -> None:
    """Annotations alone decide: of an asset, of inputs by keyword, of a graph's steps, of a check, of a later run."""

    @dg.asset
    def release() -> ArtefactRef:
        return REFERENCE

    @dg.op(out=dg.DynamicOut(list), ins={"given": dg.In(ArtefactRef)})
    def plan(given: ArtefactRef) -> Iterator[dg.DynamicOutput[list[str]]]:
        yield dg.DynamicOutput([given.kind], mapping_key="a")
        yield dg.DynamicOutput([given.fingerprint], mapping_key="b")

    @dg.op
    def write(part_ids: list[str]) -> PartsMade:
        return PartsMade(tuple(part_ids))

    @dg.op
    def publish(written: list[PartsMade]) -> PartsMade:
        return PartsMade(tuple(sorted(part for step in written for part in step.made)))

    @dg.graph_asset(ins={"given": dg.AssetIn("release")})
    def store(given: ArtefactRef) -> PartsMade:
        return publish(plan(given).map(write).collect())

    @dg.asset(ins={"store": dg.AssetIn("store", dagster_type=PartsMade)})
    def index(release: ArtefactRef, **stores: PartsMade) -> ArtefactRef:
        return dataclasses.replace(release, info={"made": list(stores["store"].made)})

    @dg.asset_check(asset=index)
    def of_both(index: ArtefactRef) -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=index.info == {"made": ["ab", "release"]})

    resources = {"io_manager": JsonIOManager(folder=str(tmp_path))}
    assets = [release, store, index, of_both]
    with dg.DagsterInstance.ephemeral() as instance:
        run = dg.materialize(assets, resources=resources, instance=instance)
        assert [check.passed for check in run.get_asset_check_evaluations()] == [True]
        alone = dg.materialize(assets, selection=[index], resources=resources, instance=instance)
    assert alone.output_for_node("index").info == {"made": ["ab", "release"]}
