"""Tiles blended: the result is that of the whole picture where both can be had, and no seam shows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npdiffusion import Tensor, no_grad
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
    """Of a picture that holds its columns' numbers: tiles of 256, up to four of a row at once, 192 apart, margin 32."""
    seen = []
    image = np.tile(np.arange(300, dtype=np.float32), (1, 300, 1))
    result = predict_tiled(lambda tiles: seen.append(tiles) or tiles, image)
    np.testing.assert_allclose(result, image, rtol=1e-6)
    assert [tiles.shape for tiles in seen] == 2 * [(2, 1, 256, 256)]
    assert seen[0][0, 0, 40, 32] == 0 and seen[0][1, 0, 40, 0] == 192 - 32
    assert capsys.readouterr() == ("", "")
