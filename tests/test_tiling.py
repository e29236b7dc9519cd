"""Tiles blended: the result is that of the whole picture where both can be had, and no seam shows."""

import errno
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npdiffusion import Tensor, distributed, no_grad
from npdiffusion.nn import Conv2d
from npdiffusion.tiling import predict_tiled

SIZES = [(1, 1), (5, 7), (1, 90), (32, 32), (33, 31), (100, 64), (61, 150)]


def picture(size, channels=2, seed=0):
    return np.random.default_rng(seed).standard_normal((channels, *size)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(2, 40), st.floats(0, 1), st.integers(1, 5))
def test_pointwise_and_constant_predictors_come_back_exactly(height, width, tile, share, batch_size):
    """The weights sum to 1 everywhere, whatever the sizes; 0.1 is no binary fraction."""
    image, overlap, seen = picture((height, width)), int(share * (tile - 1)), []

    def predict(tiles):
        assert tiles.shape[1:] == (2, tile, tile) and len(tiles) <= batch_size and tiles.dtype == np.float32
        seen.append(len(tiles))
        constant = np.full((len(tiles), 1, tile, tile), np.float32(0.1))
        return np.concatenate([3 * tiles, constant], 1)

    result = predict_tiled(predict, image, None, tile, overlap, batch_size)
    assert result.shape == (3, height, width) and result.dtype == np.float32
    np.testing.assert_array_equal(result[:2], 3 * image)
    assert (result[2] == np.float32(0.1)).all()
    stride = tile - overlap
    assert sum(seen) <= (height // stride + 2) * (width // stride + 2)  # no more tiles than it takes


def mean_of_neighbours(tiles, reach, mode):
    """Mean over (2·reach + 1)² pixels, by plain sums, with the edge handled by np.pad's ``mode``."""
    padded = np.pad(tiles, [(0, 0), (0, 0), (reach, reach), (reach, reach)], mode=mode)
    h, w = tiles.shape[2:]
    size = 2 * reach + 1
    return sum(padded[:, :, i:i + h, j:j + w] for i in range(size) for j in range(size)) / np.float32(size * size)


@pytest.mark.parametrize("size", SIZES)
def test_local_predictor_equals_the_untiled_one(size):
    """What a filter sees beyond a tile's edge (zeros) has no weight; beyond the picture's edge it sees its mirror."""
    image, reach = picture(size), min(4, min(size) - 1)  # overlap/4 pixels of a tile have no weight
    whole = mean_of_neighbours(image[None], reach, "reflect")[0]
    tiled = predict_tiled(lambda tiles: mean_of_neighbours(tiles, reach, "constant"), image, tile=48, overlap=16)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_a_network_without_padding_sees_no_tiles():
    """A convolution over the whole picture equals the tiled one, but for the picture's own edge."""
    layer = Conv2d(2, 3, 5, padding=2)
    image = picture((130, 90))

    def predict(x):
        with no_grad():
            return layer(Tensor(x)).data

    tiled, whole = predict_tiled(predict, image, tile=32, overlap=8), predict(image[None])[0]
    np.testing.assert_allclose(tiled[:, 2:-2, 2:-2], whole[:, 2:-2, 2:-2], atol=1e-5)


def test_no_seams():
    """A predictor that answers each tile with its own level makes a result without steps."""
    levels = iter(range(100))

    def predict(tiles):
        return np.stack([np.full((1, 64, 64), float(next(levels) % 2)) for _ in tiles])

    result = predict_tiled(predict, picture((200, 250)), tile=64, overlap=32)
    assert np.ptp(result) > 0.9  # the levels are there
    steepest = max(np.abs(np.diff(result, axis=a)).max() for a in (1, 2))
    assert steepest < 0.12  # half a cosine over 16 pixels: at most π/2/16 from one to the next
    edge = predict_tiled(lambda tiles: np.where(np.arange(64) % 63, 0.0, 1e6) + 0 * tiles, picture((200, 250)), None,
                         64, 32)
    assert not edge.any()  # the outermost pixels of tiles count for nothing


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, bool, np.float16, np.float64])
def test_tiles_are_floats_whatever_the_picture(dtype):
    """uint8 minus 200 would wrap around in the predictor."""
    image = (100 * picture((40, 50))).clip(0, 120).astype(dtype)
    result = predict_tiled(lambda tiles: -tiles - 200, image, tile=32, overlap=8)
    np.testing.assert_array_equal(result, -image.astype(np.float32) - 200)


@pytest.mark.parametrize("options, message", [
    (dict(tile=32, overlap=32), "overlap < tile"), (dict(tile=32, overlap=-1), "overlap < tile"),
    (dict(batch_size=0), "batch_size >= 1")])
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        predict_tiled(lambda tiles: tiles, picture((40, 40)), **options)


def test_wrong_shapes():
    for image in (np.zeros(40), np.zeros((1, 1, 40, 40)), np.zeros((1, 0, 40))):
        with pytest.raises(ValueError, match=r"expects an image of shape \(C, H, W\)"):
            predict_tiled(lambda tiles: tiles, image)
    for answer in (lambda tiles: tiles[:, 0], lambda tiles: tiles[:, :, 1:], lambda tiles: tiles[:1].repeat(9, 0)):
        with pytest.raises(ValueError, match=r"expects predict to return \(4, K, 32, 32\)"):
            predict_tiled(answer, picture((90, 90)), tile=32, overlap=8)


def test_defaults_are_what_the_docs_say(capsys):
    """Of a picture that holds its columns' numbers: tiles of 256, four of a row at once, 192 apart, margin 32."""
    seen = []
    image = np.tile(np.arange(900, dtype=np.float32), (1, 300, 1))
    result = predict_tiled(lambda tiles: seen.append(tiles) or tiles, image)
    np.testing.assert_allclose(result, image, rtol=1e-6)
    assert [tiles.shape for tiles in seen] == 2 * [(4, 1, 256, 256), (1, 1, 256, 256)]
    assert seen[0][0, 0, 40, 32] == 0 and seen[0][1, 0, 40, 0] == 192 - 32
    assert capsys.readouterr() == ("", "")


# From disk to disk


TILES = dict(tile=32, overlap=8, batch_size=3)  # 24 apart
HEIGHT, WIDTH, STRIPS, COLUMNS = 150, 100, 7, 5


def wavy(tiles):
    """Three channels, which differ within a tile."""
    return np.concatenate([np.tanh(tiles), tiles ** 2 + np.arange(32) / 7, tiles[:, ::-1] - np.ones((32, 1))], 1)[:, :3]


def on_disk(path, shape=(3, HEIGHT, WIDTH), dtype=np.float32):
    return np.memmap(path, dtype, "r+" if path.exists() else "w+", shape=shape)


class Recorder:
    """An ``out`` that remembers which rows were written."""

    def __init__(self, shape, chunks=None, dtype=np.float32):
        self.data, self.written = np.full(shape, np.nan, dtype), []
        self.shape, self.dtype, self.chunks = shape, self.data.dtype, chunks

    def __setitem__(self, index, value):
        everything, rows, columns = index
        assert everything is Ellipsis and columns == slice(None) and rows.step is None
        self.written.append((rows.start, rows.stop))
        self.data[index] = value


class Stopped:
    """A predictor that fails after some calls, and counts its tiles."""

    def __init__(self, calls=10 ** 9, error=KeyboardInterrupt):
        self.calls, self.error, self.tiles = calls, error, 0

    def __call__(self, tiles):
        self.calls -= 1
        if self.calls < 0:
            raise self.error
        self.tiles += len(tiles)
        return wavy(tiles)


@pytest.fixture
def image():
    return picture((HEIGHT, WIDTH))


@pytest.fixture
def whole(image):
    return predict_tiled(wavy, image, **TILES)


@pytest.mark.parametrize("kind", ["memmap", "zarr", "h5py"])
def test_arrays_on_disk(kind, image, whole, tmp_path):
    """Both ways; ``out`` itself is returned, and no journal is left."""
    if kind == "memmap":
        source, out = on_disk(tmp_path / "in", image.shape), on_disk(tmp_path / "out")
        source[:] = image
        source = np.memmap(tmp_path / "in", np.float32, "r", shape=image.shape)
    elif kind == "zarr":
        zarr = pytest.importorskip("zarr")
        source = zarr.create_array(tmp_path / "in", shape=image.shape, dtype="f4", chunks=(1, 40, 30))
        out = zarr.create_array(tmp_path / "out", shape=whole.shape, dtype="f4", chunks=(3, 20, 50), shards=(3, 40, 50))
        source[:] = image
    else:
        file = pytest.importorskip("h5py").File(tmp_path / "arrays", "w")
        source = file.create_dataset("in", data=image)
        out = file.create_dataset("out", whole.shape, "f4", chunks=(1, 33, 100))
    journal = None if kind == "memmap" else tmp_path / "journal"
    assert predict_tiled(wavy, source, out, **TILES, journal=journal) is out
    np.testing.assert_array_equal(np.asarray(out[:]), whole)
    assert not [*tmp_path.glob("*journal")]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_one_channel_needs_no_axis(dtype, tmp_path):
    image, out = picture((50, 40), 1), on_disk(tmp_path / "out", (50, 40), dtype)
    predict_tiled(np.sin, image[0], out, **TILES)
    expected = predict_tiled(np.sin, image, **TILES)[0]
    np.testing.assert_allclose(out, expected.astype(dtype), rtol=1e-3 if dtype == np.float16 else 1e-6)


@pytest.mark.parametrize("chunk, blocks", [(None, STRIPS), (1, STRIPS), (20, 7), (64, 3), (1000, 1)])
def test_chunks_are_written_once(chunk, blocks, image, whole):
    out = Recorder(whole.shape, chunk and (1, chunk, 7))
    predictor = Stopped()
    predict_tiled(predictor, image, out, **TILES)
    np.testing.assert_allclose(out.data, whole, atol=1e-6)
    edges = [0, *(stop for _, stop in out.written)]
    assert out.written == list(zip(edges, edges[1:])) and edges[-1] == HEIGHT and len(out.written) == blocks
    assert all(edge % (chunk or 1) == 0 for edge in edges[:-1])
    assert predictor.tiles == STRIPS * COLUMNS  # each once


def test_memory_does_not_grow_with_height():
    class Tall:
        dtype = np.dtype(np.float32)

        def __init__(self, height):
            self.shape = (1, height, 300)

        def __getitem__(self, index):
            rows = np.arange(index[1].start, index[1].stop, dtype=np.float32)
            return np.broadcast_to(rows[:, None], (1, len(rows), 300))

        def __setitem__(self, index, value):
            np.testing.assert_allclose(value, self[index], rtol=1e-6)

    def peak(height):
        tracemalloc.start()
        predict_tiled(lambda tiles: tiles, Tall(height), Tall(height), 64, 16)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(400)  # the first time caches fill
    assert peak(8000) < 1.2 * peak(400) + 60 * 8000  # indices and weights of rows; the picture has 1200 bytes a row


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_goes_on_where_it_was_stopped(error, image, whole, tmp_path):
    """Bit for bit, and predicts but what is missing; two stops, and a line of the journal only half written."""
    path, journal = tmp_path / "out", tmp_path / "out.journal"
    with pytest.raises(error):
        predict_tiled(Stopped(7, error), image, on_disk(path), **TILES)  # strips 0, 1 and 2: two calls each
    assert len(journal.read_text().split("\n")) == 1 + 3
    journal.write_text(journal.read_text()[:-3])
    with pytest.raises(error):
        predict_tiled(Stopped(5, error), image, on_disk(path), **TILES)  # strips 1, 2
    assert len(journal.read_text().split("\n")) == 1 + 3 + 1
    last = Stopped()
    np.testing.assert_array_equal(predict_tiled(last, image, on_disk(path), **TILES), whole)
    assert last.tiles == (STRIPS - 2) * COLUMNS and not journal.exists()


def test_full_disk(image, whole, tmp_path):
    """The error of ``out`` comes through; once there is room the work goes on."""
    class Full(Recorder):
        def __getitem__(self, index):
            return self.data[index]

        def __setitem__(self, index, value):
            if index[1].start > 50 and self.room == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().__setitem__(index, value)

    out, last = Full(whole.shape), Stopped()
    out.room = 0
    with pytest.raises(OSError, match="No space left"):
        predict_tiled(wavy, image, out, **TILES, journal=tmp_path / "journal")
    out.room = 1
    predict_tiled(last, image, out, **TILES, journal=tmp_path / "journal")
    np.testing.assert_array_equal(out.data, whole)
    assert last.tiles < STRIPS * COLUMNS and sorted(set(out.written)) == out.written


def test_an_out_made_anew_is_done_anew(image, whole, tmp_path):
    """The journal knows what the blocks held: zeros, which mode="w+" makes, are no result."""
    with pytest.raises(KeyboardInterrupt):
        predict_tiled(Stopped(7), image, on_disk(tmp_path / "out"), **TILES)
    out = np.memmap(tmp_path / "out", np.float32, "w+", shape=whole.shape)
    np.testing.assert_array_equal(predict_tiled(wavy, image, out, **TILES), whole)


def test_a_journal_of_other_work(image, whole, tmp_path):
    out = on_disk(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        predict_tiled(Stopped(7), image, out, **TILES)
    for options in (dict(tile=32, overlap=4), dict(tile=64, overlap=8), {}):
        with pytest.raises(ValueError, match=r"out\.journal is the journal of other work.*to begin anew, remove"):
            predict_tiled(wavy, image, out, **options)
    np.testing.assert_array_equal(predict_tiled(wavy, image, out, **TILES | dict(batch_size=1)), whole)  # no matter


def test_what_out_must_be(image, tmp_path):
    def untouched(tiles):
        raise AssertionError("predicted before it was checked")

    for shape, dtype, message in [((3, 150, 99), "f4", r"of shape \(K, 150, 100\) or \(150, 100\), got \(3, 150, 99"),
                                  ((1, 3, 150, 100), "f4", "out of shape"), ((100,), "f4", "out of shape"),
                                  ((3, 150, 100), "u1", "floats.*got uint8"), ((3, 150, 100), "i8", "floats"),
                                  ((3, 150, 100), bool, "floats"), ((3, 150, 100), "c8", "floats")]:
        with pytest.raises(ValueError, match=message):
            predict_tiled(untouched, image, np.zeros(shape, dtype), **TILES)
    with pytest.raises(ValueError, match="out= with journal="):
        predict_tiled(untouched, image, journal=tmp_path / "journal")
    for shape in ((2, 150, 100), (150, 100)):
        with pytest.raises(ValueError, match=r"to return \(3, [12], 32, 32\), got \(3, 3, 32, 32\); out.*K channels"):
            predict_tiled(wavy, image, np.zeros(shape), **TILES)
    on_disk(tmp_path / "out")
    with pytest.raises(ValueError, match="read-only"):
        predict_tiled(wavy, image, np.memmap(tmp_path / "out", np.float32, "r", shape=(3, 150, 100)), **TILES)


@pytest.fixture
def as_rank(monkeypatch):
    """as_rank(1, 2, function): it is called as rank 1 of 2 would, without waiting for rank 0."""
    state = {"rank": 0, "size": 1}

    @contextmanager
    def within(**changes):
        before = dict(state)
        state.update(changes)
        yield
        state.update(before)

    monkeypatch.setattr(distributed, "get_rank", lambda: state["rank"])
    monkeypatch.setattr(distributed, "get_world_size", lambda: state["size"])
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    monkeypatch.setattr(distributed, "broadcast", lambda function: function())
    monkeypatch.setattr(distributed, "alone", lambda: within(rank=0, size=1))

    def call(rank, size, function):
        with within(rank=rank, size=size):
            return function()

    return call


@pytest.mark.parametrize("size", [2, 3, 9])
def test_ranks_write_each_its_own_blocks(size, as_rank, image, whole):
    out, tiles = Recorder(whole.shape), 0
    for rank in range(size):
        predictor = Stopped()
        as_rank(rank, size, lambda: predict_tiled(predictor, image, out, **TILES))
        tiles += predictor.tiles
    np.testing.assert_array_equal(out.data, whole)
    assert len(out.written) == STRIPS and sorted(out.written) == out.written
    assert tiles <= (STRIPS + size - 1) * COLUMNS  # one more strip at each seam


@pytest.mark.parametrize("size", [2, 7])
def test_ranks_deal_out_the_tiles_of_a_strip(size, as_rank, monkeypatch, image, whole):
    """Without ``out``: what the ranks hand to all_reduce sums to the whole, and predict is alone."""
    parts = []

    def predict(tiles):
        assert distributed.get_world_size() == 1
        return wavy(tiles)

    for rank in range(size):
        mine = []
        monkeypatch.setattr(distributed, "all_reduce", lambda x: mine.append(x) or x)
        as_rank(rank, size, lambda: predict_tiled(predict, image, **TILES))
        parts.append(mine)
    sums = iter([sum(strips) for strips in zip(*parts)])
    monkeypatch.setattr(distributed, "all_reduce", lambda x: next(sums))
    np.testing.assert_allclose(as_rank(0, size, lambda: predict_tiled(predict, image, **TILES)), whole, atol=1e-6)


def test_ranks_go_on_with_what_is_left(as_rank, image, whole, tmp_path):
    """Rank 1 of 2 had done its half; its journal, from which rank 0's blocks are missing, serves any number."""
    out, journal = on_disk(tmp_path / "out"), tmp_path / "out.journal"
    with pytest.raises(KeyboardInterrupt):
        as_rank(0, 2, lambda: predict_tiled(Stopped(0), image, out, **TILES))
    as_rank(1, 2, lambda: predict_tiled(wavy, image, out, **TILES))
    assert len(journal.read_text().split("\n")) == 1 + 4
    last = Stopped()
    np.testing.assert_array_equal(predict_tiled(last, image, out, **TILES), whole)
    assert last.tiles == 3 * COLUMNS and not journal.exists()
