"""Shards made without zarr are what zarr-python and TensorStore make and read; damage is found, never decoded."""

import itertools
import os
import pickle
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorstore
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from storage.base.blobs import LocalBlobs
from storage.base.errors import IntegrityError, StorageError
from storage.shards.arrays import ArrayLayout
from storage.shards.codec import (
    Compression,
    ShardEncoder,
    ShardError,
    crc32c,
    decode_chunk,
    index_bytes,
    read_index,
)
from storage.shards.fragments import Fragment
from storage.shards.metadata import array_metadata, group_metadata, zarr_codec
from storage.shards.open_shards import OpenShards
from storage.shards.reader import ShardReader
from storage.shards.writing import ShardWriter, put_shard

COMPRESSIONS: tuple[Compression, ...] = ("zstd", "lz4")
LAYOUTS = [
    ArrayLayout("flat", "uint8", (), 64, 256),
    ArrayLayout("labels", "uint16", (), 32, 128),
    ArrayLayout("answers", "float16", (3, 2, 5), 2, 8, level=3),
]


def described(layout: ArrayLayout, compression: Compression) -> ArrayLayout:
    return ArrayLayout(**{**layout.__dict__, "compression": compression})


def random_block(layout: ArrayLayout, seed: int) -> npt.NDArray[Any]:
    """Return a shard's elements, the last chunk all zero."""
    block = np.random.default_rng(seed).integers(0, 40, (layout.shard, *layout.tail)).astype(layout.dtype)
    block[-layout.chunk :] = 0
    return block


def group_of(
    root: Path, layout: ArrayLayout, blocks: list[npt.NDArray[Any]], opened: OpenShards | None = None
) -> ShardReader:
    """Write a group with one array of these shards, and return its reader."""
    place = LocalBlobs(root)
    place.put("zarr.json", group_metadata())
    place.put(f"{layout.name}/zarr.json", array_metadata(layout, len(blocks) * layout.shard))
    records = [put_shard(place, layout, number, layout.encode(block)) for number, block in enumerate(blocks)]
    return ShardReader(place, [layout], [Fragment("part-0", "", tuple(records))], "mend it", opened)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_shard_is_byte_for_byte_what_zarr_writes(layout: ArrayLayout, compression: Compression) -> None:
    layout = described(layout, compression)
    block = random_block(layout, 1)
    files: dict[str, Any] = {}
    array = zarr.create_array(
        MemoryStore(files),
        name=layout.name,
        shape=block.shape,
        chunks=(layout.chunk, *layout.tail),
        shards=block.shape,
        dtype=layout.dtype,
        compressors=[zarr_codec(compression, layout.level, block.itemsize), Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    array[:] = block
    assert layout.encode(block) == files[layout.key(0)].to_bytes()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_zarr_and_tensorstore_read_what_we_write(layout: ArrayLayout, compression: Compression, tmp_path: Path) -> None:
    layout = described(layout, compression)
    blocks = [random_block(layout, seed) for seed in range(3)]
    group_of(tmp_path, layout, blocks)
    expected = np.concatenate(blocks)
    np.testing.assert_array_equal(zarr.open_group(tmp_path, mode="r")[layout.name][:], expected, strict=True)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / layout.name)}}
    np.testing.assert_array_equal(tensorstore.open(spec, read=True).result().read().result(), expected, strict=True)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_chunks_after_the_last_are_absent_as_in_zarr(
    layout: ArrayLayout, compression: Compression, tmp_path: Path
) -> None:
    """A last chunk that is partly filled is stored with zeros; zarr, told to, leaves out what is all zero."""
    layout = described(layout, compression)
    block = random_block(layout, 1)[: layout.chunk + layout.chunk // 2] + 1
    array = zarr.create_array(
        tmp_path / "zarr",
        shape=(layout.shard, *layout.tail),
        chunks=(layout.chunk, *layout.tail),
        shards=(layout.shard, *layout.tail),
        dtype=layout.dtype,
        compressors=[zarr_codec(compression, layout.level, block.itemsize), Crc32cCodec()],
        fill_value=0,
    )
    array[: len(block)] = block
    assert layout.encode(block) == (tmp_path / "zarr" / layout.key(0).partition("/")[2]).read_bytes()
    reader = group_of(tmp_path / "ours", layout, [block])
    np.testing.assert_array_equal(reader.read(layout.name, 0, len(block)), block)
    with pytest.raises(IntegrityError, match="found an absent one"):
        reader.read(layout.name, 2 * layout.chunk, 3 * layout.chunk)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "ours" / layout.name)}}
    for read in (
        zarr.open_group(tmp_path / "ours", mode="r")[layout.name][:],
        tensorstore.open(spec, read=True).result().read().result(),
    ):
        np.testing.assert_array_equal(read[: len(block)], block)
        assert not read[len(block) :].any()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("level", [1, 4, 9])
def test_levels_are_read_by_all_and_lz4_above_one_is_smaller(
    compression: Compression, level: int, tmp_path: Path
) -> None:
    layout = ArrayLayout("flat", "uint8", (), 4096, 16384, level, compression)
    steps = np.random.default_rng(3).integers(0, 3, layout.shard)
    block = (np.cumsum(steps) // 7 % 40).astype(np.uint8)
    group_of(tmp_path, layout, [block])
    np.testing.assert_array_equal(zarr.open_group(tmp_path, mode="r")["flat"][:], block)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "flat")}}
    np.testing.assert_array_equal(tensorstore.open(spec, read=True).result().read().result(), block)
    fast = replace(layout, level=1).encode(block)
    assert len(layout.encode(block)) < len(fast) or level == 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    compression=st.sampled_from(COMPRESSIONS),
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    ends=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
)
def test_runs_of_any_size_are_read_back(
    tmp_path: Path, compression: Compression, sizes: list[int], ends: tuple[int, int]
) -> None:
    layout = described(LAYOUTS[0], compression)
    place = LocalBlobs(tmp_path)
    writer = ShardWriter(place, layout, 5, 40)
    rng = np.random.default_rng(sum(sizes))
    runs = [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    offsets = [writer.append(run) for run in runs]
    records = writer.close()
    reader = ShardReader(place, [layout], [Fragment("p", "", tuple(records))], "mend it")
    assert all(offset % layout.chunk == 0 for offset in offsets)
    assert [record.shard for record in records] == list(range(5, 5 + len(records)))
    for offset, run in zip(offsets, runs, strict=True):
        np.testing.assert_array_equal(reader.read("flat", offset, offset + run.size), run)
        start, stop = sorted(end % (run.size + 1) for end in ends)
        np.testing.assert_array_equal(reader.read("flat", offset + start, offset + stop), run[start:stop])
    for (begin, run), offset in zip(zip(offsets, runs, strict=True), offsets[1:], strict=False):
        assert not reader.read("flat", begin + run.size, offset).any(), "what follows a run in its chunk is zero"


def test_a_writer_refuses_more_than_its_shards_hold(tmp_path: Path) -> None:
    writer = ShardWriter(LocalBlobs(tmp_path), LAYOUTS[0], 0, 1)
    writer.append(np.zeros(200, np.uint8))
    with pytest.raises(StorageError, match="at most 0 elements more"):
        writer.append(np.zeros(1, np.uint8))


def test_crc32c_is_the_standard_one() -> None:
    """RFC 3720 appendix B.4: 32 bytes of zeros, and 0 to 31."""
    assert crc32c(bytes(32)) == bytes.fromhex("aa36918a")
    assert crc32c(bytes(range(32))) == bytes.fromhex("4e79dd46")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_flipped_bit_of_a_chunk_and_of_the_index_is_found(compression: Compression) -> None:
    chunks = [np.random.default_rng(seed).integers(0, 9, 50, dtype=np.uint8) for seed in range(2)]
    encoder = ShardEncoder(compression, 1, 1)
    for chunk in chunks:
        encoder.add(chunk)
    good = encoder.finish(2)

    def decoded(data: bytes) -> list[npt.NDArray[np.uint8]]:
        ends = read_index(data[-index_bytes(2) :], 2, len(data))
        out = [np.empty(50, np.uint8) for _ in chunks]
        for number, array in enumerate(out):
            decode_chunk(data, ends[number], ends[number + 1], array, compression)
        return out

    np.testing.assert_array_equal(decoded(good), chunks)
    for position, bit in itertools.product(range(len(good)), (0, 5)):
        flipped = bytearray(good)
        flipped[position] ^= 1 << bit
        with pytest.raises(ShardError):
            decoded(bytes(flipped))


@pytest.mark.parametrize("entry", [(2**63, 10), (0, 2**64 - 1), (20, 3), (2**64 - 1, 2**64 - 1), (21, 27)])
def test_an_index_that_points_nowhere_is_refused_even_with_a_right_checksum(entry: tuple[int, int]) -> None:
    entries = np.array([0, 20, *entry], "<u8").tobytes()
    with pytest.raises(ShardError, match=r"points outside|not there"):
        read_index(entries + crc32c(entries), 2, 84)


def test_threads_share_a_reader_that_keeps_few_shards_open(tmp_path: Path) -> None:
    layout, opened = LAYOUTS[0], OpenShards(limit=2)
    blocks = [random_block(layout, seed) for seed in range(9)]
    reader, expected = group_of(tmp_path, layout, blocks, opened), np.concatenate(blocks)
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(150):
            start, stop = sorted(rng.integers(0, expected.size, 2))
            if not np.array_equal(reader.read("flat", start, stop), expected[start:stop]):
                wrong.append(start)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(opened) == 2
    assert len(list(Path("/proc/self/fd").iterdir())) < 100, "closed shards give their files back"


def test_a_pickled_reader_opens_its_own(tmp_path: Path) -> None:
    layout = LAYOUTS[2]
    block = random_block(layout, 3)
    reader = group_of(tmp_path, layout, [block])
    reader.read("answers", 0, 1)
    copy = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(copy.read("answers", 1, 7), block[1:7], strict=True)


def test_a_shard_of_another_part_size_is_refused_when_opened(tmp_path: Path) -> None:
    reader = group_of(tmp_path, LAYOUTS[0], [random_block(LAYOUTS[0], 0)])
    (tmp_path / "flat" / "c" / "0").write_bytes(b"short")
    with pytest.raises(IntegrityError, match=r"expected \d+ bytes, found 5; delete parts/part-0\.json.*mend it"):
        reader.read("flat", 0, 1)


def test_offsets_of_another_store_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    reader = group_of(tmp_path, LAYOUTS[0], [random_block(LAYOUTS[0], 0)])
    with pytest.raises(IntegrityError, match="names no shard 1"):
        reader.read("flat", 0, 2**62)


def test_a_forked_child_opens_its_own(tmp_path: Path) -> None:
    layout = LAYOUTS[0]
    block = random_block(layout, 0)
    opened = OpenShards()
    reader = group_of(tmp_path, layout, [block], opened)
    reader.read("flat", 0, 9)
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(reader.read("flat", 3, 99), block[3:99]) and len(opened) == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
