"""A zoo of picture files, as microscopes and other programs write them, against the arrays that went in.

Written by tifffile, Pillow, and a few lines of PNG below; the right answer is made from the arrays by rules of this file.
"""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from npdiffusion.data import load_pairs, load_picture, micrographs, read_micrograph, reading

tifffile = pytest.importorskip("tifffile")

H, W = 24, 20
GREY = (np.arange(H * W).reshape(H, W) * 255 // (H * W - 1)).astype(np.uint8)  # no symmetry: turns would show
COLOURS = np.stack([GREY, GREY.T.reshape(H, W), 255 - GREY // 2], 2)
TWELVE = np.random.default_rng(0).integers(100, 4096, (H, W, 3)).astype(np.uint16)  # 12 of 16 bits are used
LUMA = np.array([0.299, 0.587, 0.114])
ORIENTATIONS = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
                6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1)}
# how a picture lies in a file whose tag says that the reader must turn it: 6 by a quarter clockwise, and so on


def stretched(values):
    """The documented rule for 16 bits and more: but for a thousandth on each side, 0 to 255."""
    values = values.astype(np.float64)
    ordered = np.sort(values, axis=None)
    low, high = ordered[int(np.ceil(0.001 * (values.size - 1)))], ordered[int(0.999 * (values.size - 1))]
    return np.clip((values - low) * 255 / (high - low), 0, 255)


def tif(array, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"photometric": "minisblack", "metadata": None, **options})
    return buffer.getvalue()


def pil(array, kind="tiff", mode=None, **options):
    picture, buffer = Image.fromarray(array), io.BytesIO()
    (picture.convert(mode) if mode else picture).save(buffer, kind, **options)
    return buffer.getvalue()


def retagged(data, **tags):
    """The TIFF file with other tags: {name: value, or (type, value) of several}."""
    buffer = io.BytesIO(data)
    with tifffile.TiffFile(buffer, mode="r+b") as file:
        for name, value in tags.items():
            file.pages[0].tags[name].overwrite(value)
    return buffer.getvalue()


ADAM7 = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]


def png(samples, bits=8, kind=0, interlaced=False, **chunks):
    """A PNG file of samples (H, W) or (H, W, C); kind: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def rows(part):
        flat = part.reshape(len(part), -1)
        if bits == 16:
            return b"".join(b"\0" + row.astype(">u2").tobytes() for row in flat)
        binary = flat[..., None] >> np.arange(bits - 1, -1, -1) & 1
        return b"".join(b"\0" + np.packbits(row.ravel()).tobytes() for row in binary)

    parts = [samples[y::dy, x::dx] for y, dy, x, dx in ADAM7] if interlaced else [samples]
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, kind, 0, 0, interlaced)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunk(k.encode(), v) for k, v in chunks.items())
            + chunk(b"IDAT", zlib.compress(b"".join(rows(part) for part in parts))) + chunk(b"IEND", b""))


def with_alpha(colours, alpha):
    return np.concatenate([np.atleast_3d(colours), np.broadcast_to(alpha, colours.shape[:2])[..., None]], 2)


deep = GREY.astype(np.uint16) * 16 + 100
signed, wide = deep.astype(np.int16) - 2000, deep.astype(np.uint32) + 3_000_000_000
opaque = with_alpha(TWELVE, np.uint16(65535))
luma, palette = COLOURS @ LUMA, COLOURS.reshape(-1, 3)[:256]
lzw_rgb = retagged(pil(TWELVE.reshape(H, 3 * W), compression="tiff_lzw", tiffinfo={277: 1}), ImageWidth=W, SamplesPerPixel=3,
                   BitsPerSample=(16, 16, 16), PhotometricInterpretation=2)
cmyk = np.concatenate([255 - COLOURS, 0 * GREY[..., None] + 20], 2).astype(np.uint8)
inked = (255 - cmyk[..., :3].astype(float)) * (235 / 255) @ LUMA
bits4, bits2 = GREY >> 4, GREY >> 6
tones = np.arange(256, dtype=np.uint16) * 257

ZOO = {
    # 8 bits and fewer, as they are
    "grey": (tif(GREY), GREY), "white is zero": (tif(255 - GREY, photometric="miniswhite"), GREY),
    "1 bit": (tif(GREY > 99), 255 * (GREY > 99)),
    "1 bit, white is zero": (tif(GREY <= 99, photometric="miniswhite"), 255 * (GREY > 99)),
    "G4": (pil(GREY > 99, compression="group4"), 255 * (GREY > 99)),
    "signed": (tif(GREY.astype(np.int16).__sub__(128).astype(np.int8)), GREY),
    "signed, LZW": (retagged(pil(GREY ^ 128, compression="tiff_lzw", tiffinfo={339: 1}), SampleFormat=2), GREY),
    "RGB": (tif(COLOURS, photometric="rgb"), luma), "planes": (tif(np.moveaxis(COLOURS, 2, 0), photometric="rgb",
                                                                 planarconfig="separate"), luma),
    "palette": (tif(GREY, photometric="palette", colormap=np.stack([tones, tones[::-1], tones // 2])),
                np.stack([GREY, 255 - GREY, tones[GREY] // 2 >> 8], 2) @ LUMA),
    "palette of 8 bits": (tif(GREY, photometric="palette", colormap=np.stack([tones >> 8] * 3)), GREY),
    "16-bit palette": (tif(deep, photometric="palette", colormap=np.tile(np.arange(65536, dtype=np.uint16)[::-1],
                                                                        (3, 1))), 65535 - deep >> 8),
    "CMYK": (tif(cmyk, photometric="separated"), inked), "CMYK by Pillow": (pil(COLOURS, mode="CMYK"), luma),
    "CMYK JPEG": (pil(np.repeat(GREY[..., None], 3, 2), "jpeg", "CMYK", quality=100), GREY),
    "not declared samples": (tif(with_alpha(GREY, np.uint8(3)), extrasamples=["unspecified"]), GREY),
    "alpha": (tif(with_alpha(COLOURS, np.uint8(255)), photometric="rgb", extrasamples=["unassalpha"]), luma),
    "tiles": (tif(GREY, tile=(16, 16), compression="zlib", predictor=True), GREY),
    "strips, big end, BigTIFF": (tif(GREY, rowsperstrip=5, byteorder=">", bigtiff=True), GREY),
    "LZW": (pil(GREY, compression="tiff_lzw"), GREY), "PackBits": (pil(GREY, compression="packbits"), GREY),
    "JPEG": (pil(GREY, compression="jpeg", quality=100), GREY),
    "YCbCr JPEG": (pil(np.repeat(GREY[..., None], 3, 2), compression="jpeg", quality=100), GREY),
    "PNG": (png(GREY), GREY), "PNG, linear gamma": (png(GREY, gAMA=struct.pack(">I", 100000)), GREY),
    "PNG, interlaced": (png(COLOURS, kind=2, interlaced=True), luma),
    "PNG, 1 bit": (png(GREY >> 7, 1), 255 * (GREY >> 7)), "PNG, 2 bits": (png(bits2, 2), 85 * bits2),
    "PNG, 4 bits": (png(bits4, 4, tRNS=struct.pack(">H", 3)), 17 * bits4),
    "PNG, palette": (png(GREY, kind=3, PLTE=palette.tobytes(), tRNS=bytes(7)), (palette @ LUMA)[GREY]),
    "PNG, grey and alpha": (png(with_alpha(GREY, np.uint8(7)), kind=4), GREY),
    "BMP": (pil(GREY, "bmp"), GREY), "GIF": (pil(GREY, "gif"), GREY),
    # more bits, stretched
    "uint16": (tif(deep), stretched(deep)), "uint16, big end": (tif(deep, byteorder=">"), stretched(deep)),
    "uint16, white is zero": (tif(deep, photometric="miniswhite"), stretched(-deep.astype(int))),
    "uint16, white is zero, LZW": (retagged(pil(deep, compression="tiff_lzw"), PhotometricInterpretation=0),
                                   stretched(-deep.astype(int))),
    "float, white is zero": (tif(deep.astype(np.float32), photometric="miniswhite"), stretched(-deep.astype(int))),
    "float, predictor 3": (retagged(pil(deep.astype(np.float32), compression="tiff_lzw")), stretched(deep)),
    **{f"{np.dtype(t).name}, {order}": (tif(deep.astype(t), byteorder=order), stretched(deep))
       for t in (np.uint32, np.uint64, np.int16, np.int32, np.int64, np.float16, np.float32, np.float64)
       for order in "<>"},
    "int16 below 0": (tif(signed), stretched(signed)), "int32 below 0": (tif(-deep.astype(int)), stretched(-1. * deep)),
    "int16, LZW": (retagged(pil(signed.view(np.uint16), compression="tiff_lzw", tiffinfo={339: 1}), SampleFormat=2),
                   stretched(signed)),
    "uint32 far from 0": (tif(wide), stretched(wide)), "int16, all of it": (tif(extremes := np.where(
        GREY > 99, 32767, -32768).astype(np.int16)), stretched(extremes)),
    "uint64 near its end": (tif(deep + np.uint64(2**64 - 5000)), stretched(deep)),
    "uint16, deflate, predictor": (tif(deep, compression="zlib", predictor=True), stretched(deep)),
    "RGB16": (tif(TWELVE, photometric="rgb"), stretched(TWELVE @ LUMA)),
    "RGB16, planes": (tif(np.moveaxis(TWELVE, 2, 0), photometric="rgb", planarconfig="separate"),
                      stretched(TWELVE @ LUMA)),
    "RGB16, LZW": (lzw_rgb, stretched(TWELVE @ LUMA)),
    "RGBA16": (tif(opaque, photometric="rgb", extrasamples=["unassalpha"]), stretched(TWELVE @ LUMA)),
    "RGB float": (tif(TWELVE / np.float32(4095), photometric="rgb"), stretched(TWELVE @ LUMA)),
    "CMYK16": (tif(65535 - with_alpha(TWELVE, np.uint16(65535)), photometric="separated"), stretched(TWELVE @ LUMA)),
    "PNG16": (png(deep, 16), stretched(deep)), "PNG16, interlaced": (png(deep, 16, interlaced=True), stretched(deep)),
    "PNG16, RGB": (png(TWELVE, 16, 2), stretched(TWELVE @ LUMA)),
    "PNG16, RGB, interlaced": (png(TWELVE, 16, 2, True), stretched(TWELVE @ LUMA)),
    "PNG16, RGBA": (png(opaque, 16, 6), stretched(TWELVE @ LUMA)),
    "PNG16, grey and alpha": (png(with_alpha(deep, np.uint16(65535)), 16, 4), stretched(deep)),
    "PGM16": (pil(deep, "ppm"), stretched(deep)),
}


@pytest.mark.parametrize("name", ZOO)
def test_every_kind_is_read_as_a_viewer_shows_it(tmp_path, name):
    data, expected = ZOO[name]
    (tmp_path / "a").write_bytes(data)
    image = read_micrograph(tmp_path / "a")
    assert image.dtype == np.uint8 and image.shape == (H, W)
    np.testing.assert_allclose(image, expected, atol=3 if "JPEG" in name else 0.51 + 0.51 * (np.ndim(expected) and
                               np.asarray(expected).dtype.kind == "f"))
