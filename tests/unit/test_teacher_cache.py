"""Teacher caches: encodings, round trips, killed writers, damage, what they were made from."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from storage.answers.cache_manifest import CacheFragment, CacheManifest
from storage.answers.cache_plan import ArraySpec, CachePart, CacheSpec, plan_cache_parts
from storage.answers.cache_writer import missing_parts, publish, write_part
from storage.answers.encodings import ENCODINGS, Floats
from storage.answers.teacher_cache import TeacherCache
from storage.base.atomic import read_json
from storage.base.blobs import LocalBlobs
from storage.base.errors import BusyError, FingerprintMismatchError, IntegrityError, StorageError
from storage.base.locks import exclusive_lock, shared_lock
from tests.unit.store_helpers import files_below
from tests.unit.test_release_reader import DOCUMENT, example

SPEC = CacheSpec(
    arrays={
        "embeddings": ArraySpec((4, 3, 2), "float16"),
        "probabilities": ArraySpec((2, 5, 5), "probability_uint8"),
        "narrow": ArraySpec((6, 4, 4), "int8_per_channel"),
    },
    n_slots=23,
    slots_per_chunk=2,
    slots_per_shard=4,
    shards_per_part=2,
    made_from={"plan": "p1", "teacher": {"sha256": "t1", "size": (128, 128)}},
)


def answers() -> dict[str, Floats]:
    rng = np.random.default_rng(0)
    return {
        "embeddings": rng.normal(0, 30, (23, 4, 3, 2)).astype(np.float32),
        "probabilities": rng.random((23, 2, 5, 5), dtype=np.float32),
        "narrow": rng.normal(rng.normal(0, 3, (23, 6, 1, 1)), 1, (23, 6, 4, 4)).astype(np.float32),
    }


def plan(spec: CacheSpec = SPEC) -> list[CachePart]:
    return plan_cache_parts(spec, [f"slots-{number}" for number in range(spec.n_parts)])


def write(root: Path, part: CachePart, spec: CacheSpec = SPEC) -> CacheFragment:
    return write_part(
        LocalBlobs(root), spec, part, {name: values[part.start : part.stop] for name, values in answers().items()}
    )


def build(root: Path) -> CacheManifest:
    for part in missing_parts(LocalBlobs(root), SPEC, plan()):
        write(root, part)
    return publish(LocalBlobs(root), SPEC, plan())


def test_float16_keeps_its_stated_error() -> None:
    values = np.concatenate([np.geomspace(1e-9, 65519, 5000), [0.0]]).astype(np.float32)
    values = np.concatenate([values, -values])
    codec = ENCODINGS["float16"]
    error = np.abs(codec.decode(codec.encode(values)) - values)
    assert (error <= np.maximum(np.abs(values) * 2.0**-11, 2.0**-25)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 65520.0, -1e30])
def test_float16_refuses_what_it_cannot_hold(value: float) -> None:
    with pytest.raises(StorageError, match="expected finite values below 65520"):
        ENCODINGS["float16"].encode(np.array([0.0, value], np.float32))


def test_probabilities_keep_their_stated_error() -> None:
    values = np.linspace(0, 1, 100_001, dtype=np.float32)
    codec = ENCODINGS["probability_uint8"]
    decoded = codec.decode(codec.encode(values))
    assert decoded.dtype == np.float32
    assert np.abs(decoded.astype(np.float64) - values).max() <= 1 / 510 + 1e-7
    assert (decoded[0], decoded[-1]) == (0, 1)


@pytest.mark.parametrize("value", [np.nan, -0.01, 1.01, 7.5])
def test_probabilities_outside_the_unit_interval_are_refused(value: float) -> None:
    with pytest.raises(StorageError, match=r"expected values in \[0, 1\]"):
        ENCODINGS["probability_uint8"].encode(np.array([0.5, value], np.float32))


def test_parts_cover_the_slots_on_shard_boundaries() -> None:
    assert [(part.part_id, part.start, part.stop) for part in plan()] == [
        ("part-00000", 0, 8),
        ("part-00001", 8, 16),
        ("part-00002", 16, 23),
    ]
    with pytest.raises(StorageError, match="expected 3, one for every 8 slots, found 1"):
        plan_cache_parts(SPEC, ["one"])


def test_round_trip_of_any_range(tmp_path: Path) -> None:
    build(tmp_path)
    cache = TeacherCache(LocalBlobs(tmp_path))
    assert len(cache) == 23
    for name, array in SPEC.arrays.items():
        codec = array.codec()
        expected = codec.decode(codec.encode(answers()[name]))
        for start, stop in [(0, 23), (0, 1), (3, 9), (7, 17), (22, 23), (5, 5)]:
            np.testing.assert_array_equal(cache.read(name, start, stop), expected[start:stop], strict=True)


def test_zarr_and_the_documents_example_read_the_same(tmp_path: Path) -> None:
    build(tmp_path)
    group = zarr.open_group(tmp_path, mode="r", zarr_format=3)
    assert group["embeddings"].shape == (23, 4, 3, 2)
    np.testing.assert_array_equal(group["embeddings"][:], answers()["embeddings"].astype(np.float16), strict=True)
    for name in SPEC.arrays:
        names: dict[str, Any] = {"cache": str(tmp_path), "name": name, "start": 3, "stop": 11}
        exec(compile(example("read-cache"), str(DOCUMENT), "exec"), names)
        np.testing.assert_array_equal(
            names["answers"], TeacherCache(LocalBlobs(tmp_path)).read(name, 3, 11), strict=True
        )


@pytest.mark.parametrize("name", ["header.json", "manifest.json"])
def test_an_altered_header_or_manifest_is_refused_and_mended_by_publishing(tmp_path: Path, name: str) -> None:
    build(tmp_path)
    before = files_below(tmp_path)
    (tmp_path / name).write_bytes(before[name].replace(b"t1", b"t2").replace(b"part-00000", b"part-00009"))
    with pytest.raises(IntegrityError, match=r"matches its own sha256.*make the cache again"):
        TeacherCache(LocalBlobs(tmp_path))
    build(tmp_path)
    assert files_below(tmp_path) == before


def test_an_altered_fragment_is_a_missing_part(tmp_path: Path) -> None:
    build(tmp_path)
    path = tmp_path / "parts" / "part-00001.json"
    path.write_bytes(path.read_bytes().replace(b'"start": 8', b'"start": 9'))
    assert [part.part_id for part in missing_parts(LocalBlobs(tmp_path), SPEC, plan())] == ["part-00001"]


def test_the_header_states_encodings_and_origin(tmp_path: Path) -> None:
    build(tmp_path)
    header = read_json(tmp_path / "header.json")
    assert header["arrays"]["probabilities"]["max_error"] == "1/510"
    assert header["made_from"]["plan"] == "p1"
    assert CacheSpec.from_header(header).header() == SPEC.header()


def test_only_missing_parts_are_made_again_and_bytes_are_equal(tmp_path: Path) -> None:
    build(tmp_path / "one")
    for part in reversed(plan()):
        write(tmp_path / "two", part)
    publish(LocalBlobs(tmp_path / "two"), SPEC, plan())
    assert files_below(tmp_path / "one") == files_below(tmp_path / "two")
    assert missing_parts(LocalBlobs(tmp_path / "one"), SPEC, plan()) == []


def test_a_part_of_other_slots_is_missing(tmp_path: Path) -> None:
    build(tmp_path)
    changed = plan_cache_parts(SPEC, ["slots-0", "changed", "slots-2"])
    assert missing_parts(LocalBlobs(tmp_path), SPEC, changed) == [changed[1]]


def test_a_part_of_other_slots_unpublishes_the_cache_and_withdraws_what_it_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(tmp_path)
    changed = plan_cache_parts(SPEC, ["slots-0", "changed", "slots-2"])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("storage.answers.cache_writer.put_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, changed[1])
    with pytest.raises(StorageError, match="expected a published teacher cache"):
        TeacherCache(LocalBlobs(tmp_path))
    assert missing_parts(LocalBlobs(tmp_path), SPEC, plan()) == [plan()[1]], (
        "the old fragment vouches for bytes being replaced"
    )
    write(tmp_path, changed[1])
    assert publish(LocalBlobs(tmp_path), SPEC, changed).fingerprint != first.fingerprint
    with pytest.raises(FingerprintMismatchError, match="slots: expected"):
        TeacherCache(LocalBlobs(tmp_path), fingerprint=first.fingerprint)
    TeacherCache(LocalBlobs(tmp_path)).read("embeddings", 0, 23)


@pytest.mark.parametrize(
    "harm",
    [
        lambda root: (root / "parts" / "part-00001.json").unlink(),
        lambda root: (root / "embeddings" / "c" / "3" / "0" / "0" / "0").unlink(),
        lambda root: (root / "probabilities" / "c" / "2" / "0" / "0" / "0").write_bytes(b"torn"),
    ],
)
def test_a_killed_writers_part_is_named_and_made_again(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    build(tmp_path)
    before = files_below(tmp_path)
    harm(tmp_path)
    (tmp_path / "embeddings" / "c" / "0.1.partial").write_bytes(b"left")
    assert [part.part_id for part in missing_parts(LocalBlobs(tmp_path), SPEC, plan())] == ["part-00001"]
    with pytest.raises(IntegrityError, match="part-00001"):
        publish(LocalBlobs(tmp_path), SPEC, plan())
    build(tmp_path)
    assert files_below(tmp_path) == before


def test_a_whole_part_is_left_as_it_is(tmp_path: Path) -> None:
    build(tmp_path)
    before = files_below(tmp_path)
    part = plan()[0]
    other = {name: values[part.start : part.stop] * 0 for name, values in answers().items()}
    write_part(LocalBlobs(tmp_path), SPEC, part, other)
    assert files_below(tmp_path) == before


def test_a_flipped_byte_is_caught(tmp_path: Path) -> None:
    build(tmp_path)
    path = tmp_path / "embeddings" / "c" / "1" / "0" / "0" / "0"
    good = path.read_bytes()
    for position in range(0, len(good), 11):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(IntegrityError, match=r"delete parts/part-00000\.json"):
            TeacherCache(LocalBlobs(tmp_path)).read("embeddings", 4, 8)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / "embeddings" / "c" / "1" / "0" / "0" / "0").unlink()
    with pytest.raises(IntegrityError, match="found no file"):
        TeacherCache(LocalBlobs(tmp_path)).read("embeddings", 0, 8)


def test_an_unpublished_cache_is_refused(tmp_path: Path) -> None:
    write(tmp_path, plan()[0])
    with pytest.raises(StorageError, match="expected a published teacher cache"):
        TeacherCache(LocalBlobs(tmp_path))


def test_another_origin_is_refused_with_every_difference(tmp_path: Path) -> None:
    build(tmp_path)
    other = {"plan": "p2", "teacher": {"sha256": "t2", "size": (128, 128)}}
    with pytest.raises(FingerprintMismatchError, match=r"plan: expected 'p2', found 'p1'\n.*teacher\.sha256"):
        TeacherCache(LocalBlobs(tmp_path), other)
    spec = replace(SPEC, made_from=other)
    for refused in (
        lambda: missing_parts(LocalBlobs(tmp_path), spec, plan(spec)),
        lambda: write(tmp_path, plan(spec)[0], spec),
        lambda: publish(LocalBlobs(tmp_path), spec, plan(spec)),
    ):
        with pytest.raises(FingerprintMismatchError):
            refused()
    TeacherCache(LocalBlobs(tmp_path), SPEC.made_from)


def test_fingerprints_follow_the_origin() -> None:
    other = replace(SPEC, made_from={"plan": "p2"})
    assert not {part.fingerprint for part in plan()} & {part.fingerprint for part in plan(other)}


def test_answers_of_another_shape_or_name_are_refused(tmp_path: Path) -> None:
    part = plan()[0]
    good = {name: values[:8] for name, values in answers().items()}
    for bad in ({"embeddings": good["embeddings"]}, {**good, "embeddings": good["embeddings"][:7]}):
        with pytest.raises(StorageError, match="expected answers"):
            write_part(LocalBlobs(tmp_path), SPEC, part, bad)
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (20, 24)])
def test_slots_out_of_range_are_refused(tmp_path: Path, start: int, stop: int) -> None:
    build(tmp_path)
    with pytest.raises(IndexError, match="within 0 to 23"):
        TeacherCache(LocalBlobs(tmp_path)).read("embeddings", start, stop)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    build(tmp_path)
    with pytest.raises(StorageError, match=r"\['embeddings', 'narrow', 'probabilities'\], found 'logits'"):
        TeacherCache(LocalBlobs(tmp_path)).read("logits", 0, 1)
    with pytest.raises(StorageError, match="encoding: expected one of"):
        replace(SPEC, arrays={"a": ArraySpec((2,), "int3")})


@pytest.mark.parametrize("change", [{"n_slots": 0}, {"slots_per_shard": 3}, {"shards_per_part": 0}])
def test_sizes_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(StorageError, match=next(iter(change))):
        replace(SPEC, **change)


def test_locks(tmp_path: Path) -> None:
    build(tmp_path)
    with exclusive_lock(tmp_path / ".lock", what="test"), pytest.raises(BusyError):
        write(tmp_path, plan()[0])
    with shared_lock(tmp_path / ".lock", what="test"), pytest.raises(BusyError):
        publish(LocalBlobs(tmp_path), SPEC, plan())


def test_a_cache_pickles_after_use(tmp_path: Path) -> None:
    build(tmp_path)
    cache = TeacherCache(LocalBlobs(tmp_path))
    expected = cache.read("probabilities", 0, 5)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cache)).read("probabilities", 0, 5), expected)
