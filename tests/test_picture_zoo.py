"""A zoo of picture files, as microscopes and other programs write them, against the arrays that went in.

Written by tifffile, Pillow, and a few lines of PNG below; the right answer is made from the arrays by rules of this
file.
"""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from PIL import Image

from npdiffusion.data import load_pairs, load_picture, read_micrograph, reading

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
lzw_rgb = retagged(pil(TWELVE.reshape(H, 3 * W), compression="tiff_lzw", tiffinfo={277: 1}), ImageWidth=W,
                   SamplesPerPixel=3, BitsPerSample=(16, 16, 16), PhotometricInterpretation=2)
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
    "RGB": (tif(COLOURS, photometric="rgb"), luma),
    "RGB, signed": (tif((COLOURS ^ 128).view(np.int8), photometric="rgb"), luma),
    "planes": (tif(np.moveaxis(COLOURS, 2, 0), photometric="rgb", planarconfig="separate"), luma),
    "palette": (tif(GREY, photometric="palette", colormap=np.stack([tones, tones[::-1], tones // 2])),
                np.stack([GREY, 255 - GREY, tones[GREY] // 2 >> 8], 2) @ LUMA),
    "palette of 8 bits": (tif(GREY, photometric="palette", colormap=np.stack([tones >> 8] * 3)), GREY),
    "16-bit palette": (tif(deep, photometric="palette",
                           colormap=np.tile(np.arange(65536, dtype=np.uint16)[::-1], (3, 1))), 65535 - deep >> 8),
    "CMYK": (tif(cmyk, photometric="separated"), inked), "CMYK by Pillow": (pil(COLOURS, mode="CMYK"), luma),
    "CMYK JPEG": (pil(np.repeat(GREY[..., None], 3, 2), "jpeg", "CMYK", quality=100), GREY),
    "not declared samples": (tif(with_alpha(GREY, np.uint8(3)), extrasamples=["unspecified"]), GREY),
    "alpha": (tif(with_alpha(COLOURS, np.uint8(255)), photometric="rgb", extrasamples=["unassalpha"]), luma),
    "no photometric tag": (tif(GREY).replace(b"\6\1\3\0\1", b"\xe8\xfd\3\0\1"), GREY),
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
    **{f"{np.dtype(t).name}, {order}": (tif(deep.astype(t), byteorder=order), stretched(deep.astype(t)))
       for t in (np.uint32, np.uint64, np.int16, np.int32, np.int64, np.float16, np.float32, np.float64)
       for order in "<>"},
    "int16 below 0": (tif(signed), stretched(signed)), "int64 below 0": (tif(-deep.astype(int)), stretched(-1. * deep)),
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
    np.testing.assert_allclose(image, expected, atol=3 if "JPEG" in name else 1 if "CMYK" in name else 0.501)


@pytest.mark.parametrize("data, reason", [
    (tif(65535 - with_alpha(TWELVE, np.uint16(65535)), photometric="separated"), "CMYK;16L are not supported"),
    (tif(COLOURS, photometric="cielab"), "LAB colours .* not supported"),
    (tif(deep.astype(np.complex64)), "complex"), (tif(np.full((H, W), np.inf, np.float32)), "not finite"),
    (tif(np.where(GREY > 99, 1.7e308, -1.7e308)), "too far apart to compute with"),
    (retagged(pil(deep, compression="tiff_lzw", tiffinfo={339: 1}), SampleFormat=3), "requires the 'imagecodecs'"),
    (tif(np.stack([GREY] * 3)), "a has 3 frames, expected one: save each"),
    (tif(TWELVE, planarconfig="contig"), "photometric interpretation 1 in .* samples is not supported"),
])
def test_whole_files_that_are_not_read_say_why(tmp_path, data, reason):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ValueError, match=reason) as caught:
        read_micrograph(tmp_path / "a")
    assert "give a whole" not in str(caught.value)


@pytest.mark.parametrize("tag, value", [("StripByteCounts", (120, 0, 120, 120)), ("StripOffsets", (200, 300))])
def test_missing_strips_are_damage(tmp_path, tag, value):
    (tmp_path / "a").write_bytes(retagged(tif(GREY, rowsperstrip=6), **{tag: value}))
    with pytest.raises(ValueError, match="parts of it are missing.*give a whole"):
        read_micrograph(tmp_path / "a")


# ---------------------------------------------------------------------------------------------- several pages


def test_thumbnails_and_masks_are_no_frames(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a") as file:
        for array, kind in ((GREY[::2, ::2], 1), (GREY, 0), (GREY[::2, ::2], 1), (GREY > 3, 4)):
            file.write(array, subfiletype=kind, photometric="minisblack", subifds=1 - kind if kind < 2 else 0)
            if kind == 0:
                file.write(array[::2, ::2], subfiletype=1, photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(read_micrograph(tmp_path / "a"), GREY)
    (tmp_path / "a").write_bytes(tif(GREY, subfiletype=1))
    with pytest.raises(ValueError, match="only thumbnails"):
        read_micrograph(tmp_path / "a")


@pytest.mark.parametrize("big", [False, True])
def test_imagej_stacks(tmp_path, big):
    """Of stacks beyond 4 GB, ImageJ writes one page, the other frames right behind it, and their number as text."""
    stack = (np.arange(3 * H * W).reshape(3, H, W) * 40).astype(np.uint16)
    if big:
        data = tif(stack[0], description="ImageJ=1.53t\nimages=3\nslices=3\n", byteorder=">")
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            start = file.pages[0].dataoffsets[0]
        data = data[:start] + stack.astype(">u2").tobytes()
    else:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, stack, imagej=True)
        data = buffer.getvalue()
    for folder, content in (("images", data), ("masks", tif(stack % 3 == 0))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.tif").write_bytes(content)
    pairs = load_pairs(tmp_path / "images", tmp_path / "masks")
    for image, frame, mask in zip(pairs.images, stack, pairs.masks, strict=True):
        np.testing.assert_allclose(image, stretched(frame), atol=0.501)
        np.testing.assert_array_equal(mask, frame % 3 == 0)


# ---------------------------------------------------------------------------------------------- turned


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


TURNED = {"PNG": lambda a, o: pil(a, "png", exif=exif(o)),
          "JPEG": lambda a, o: pil(a, "jpeg", exif=exif(o), quality=100),
          "RGB PNG16": lambda a, o: png(np.stack([a.astype(np.uint16) * 99] * 3, 2), 16, 2, eXIf=exif(o).tobytes()[6:]),
          "LZW": lambda a, o: pil(a, compression="tiff_lzw", tiffinfo={274: o}),
          **{np.dtype(t).name: lambda a, o, t=t: tif(a.astype(t), extratags=[(274, "H", 1, o, True)])
             for t in (np.uint8, np.uint16, np.float32)}}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", TURNED)
def test_orientation(tmp_path, kind, orientation):
    (tmp_path / "a").write_bytes(TURNED[kind](np.ascontiguousarray(ORIENTATIONS[orientation](GREY)), orientation))
    (tmp_path / "plain").write_bytes(TURNED[kind](GREY, 1))
    expected = GREY if kind in ("PNG", "JPEG", "LZW", "uint8") else stretched(GREY)
    np.testing.assert_allclose(read_micrograph(tmp_path / "a"), expected, atol=3 if kind == "JPEG" else 0.501)
    turned, said = load_picture(tmp_path / "a")
    np.testing.assert_allclose(turned, load_picture(tmp_path / "plain")[0], atol=0.1)
    assert ("turned upright" in " ".join(said)) == (orientation > 1 and kind != "LZW")


def test_each_frame_and_each_file_has_its_own_orientation(tmp_path):
    for folder, orientations, upright in (("images", (6, 3, 8), GREY), ("masks", (5, 1, 7), GREY > 99)):
        (tmp_path / folder).mkdir()
        with tifffile.TiffWriter(tmp_path / folder / "a.tif") as file:
            for orientation in orientations:
                file.write(np.ascontiguousarray(ORIENTATIONS[orientation](upright)), photometric="minisblack",
                           extratags=[(274, "H", 1, orientation, True)], metadata=None)
    pairs = load_pairs(tmp_path / "images", tmp_path / "masks")
    np.testing.assert_array_equal(pairs.images, [GREY] * 3)
    np.testing.assert_array_equal(pairs.masks, [GREY > 99] * 3)


# ---------------------------------------------------------------------------------------------- masks


MARK = np.hypot(*(np.mgrid[:32, :32] - np.array([15, 11]).reshape(2, 1, 1))) < 9
BYTES = MARK * np.uint8(255)
WHITE = np.stack([BYTES] * 3, 2)
LABELS = MARK * (1 + (np.arange(32) > 15)).astype(np.uint8)
RED = WHITE * np.array([1, 0, 0], np.uint8)
FAINT = np.where(MARK, 140, 100).astype(np.uint8)
GROUND = np.full((32, 32, 3), 255, np.uint8)

MASKS = {
    "0 and 255": pil(BYTES, "png"), "0 and 1": pil(BYTES // 255, "png"), "1 bit": pil(MARK, "png"),
    "labels": pil(LABELS, "png"), "coloured labels": pil(RED // 128 * LABELS[..., None], "png"), "red": pil(RED, "png"),
    "palette": png(LABELS, kind=3, PLTE=bytes([0, 0, 0, 0, 0, 9, 255, 0, 0])),
    "palette on transparent white": png(LABELS, kind=3, PLTE=bytes([255, 255, 255, 0, 0, 9, 255, 0, 0]), tRNS=b"\0"),
    **{f"labels, {np.dtype(t).name}": tif(LABELS.astype(t))
       for t in (np.int8, np.uint16, np.int32, np.uint32, np.float32)},
    "1 bit, white is zero": tif(~MARK, photometric="miniswhite"),
    "0 and 255, white is zero": tif(~BYTES, photometric="miniswhite"),
    "fractions": tif(np.where(MARK, 0.9, 0.02).astype(np.float32)), "float, 0 and 255": tif(BYTES.astype(np.float64)),
    "CMYK": pil(WHITE, mode="CMYK"), "CMYK by tifffile": tif(with_alpha(0 * WHITE, ~BYTES), photometric="separated"),
    "JPEG": pil(BYTES, "jpeg", quality=60), "JPEG, RGB": pil(WHITE, "jpeg", quality=60),
    "JPEG, CMYK": pil(WHITE, "jpeg", "CMYK", quality=60), "JPEG in TIFF": pil(BYTES, compression="jpeg", quality=60),
    "white on transparent white": pil(with_alpha(GROUND, BYTES), "png"),
    "white on transparent black": pil(with_alpha(WHITE, BYTES), "png"),
    "red on transparent white": pil(with_alpha(GROUND // 2 + RED // 2, BYTES), "png"),
    "opaque": pil(with_alpha(WHITE, np.uint8(255)), "png"),
    "faint elsewhere": pil(with_alpha(GROUND, FAINT), "png"),
    "faint, 16 bits": png(with_alpha(GROUND, FAINT * np.uint16(257)), 16, 6),
    "faint grey": png(with_alpha(GROUND[..., :1], FAINT * np.uint16(257)), 16, 4),
    **{f"faint, {kind}, {scale}": tif(with_alpha(GROUND, FAINT * scale), photometric="rgb", extrasamples=[kind])
       for kind in ("unassalpha", "assocalpha") for scale in (np.uint8(1), np.uint16(257), np.float32(1 / 255))},
    "another sample": tif(with_alpha(WHITE, np.uint8(0)), photometric="rgb", extrasamples=["unspecified"]),
    "turned": pil(np.rot90(with_alpha(GROUND, BYTES)), "png", exif=exif(6)),
    "grey on transparent white": png(with_alpha(GROUND[..., :1], BYTES), kind=4),
    "grey, 16 bits": png(with_alpha(GROUND[..., :1], BYTES).astype(np.uint16) * 257, 16, 4),
    "RGBA, 16 bits": png(with_alpha(GROUND, BYTES).astype(np.uint16) * 257, 16, 6),
    "RGBA in TIFF": tif(with_alpha(GROUND, BYTES), photometric="rgb", extrasamples=["unassalpha"]),
    "RGBA in TIFF, 16 bits": tif(with_alpha(GROUND, BYTES).astype(np.uint16) * 257, photometric="rgb",
                                 extrasamples=["unassalpha"]),
    "premultiplied": tif(with_alpha(WHITE, BYTES), photometric="rgb", extrasamples=["assocalpha"]),
    "transparent grey, 4 bits": png(np.where(MARK, 15, 3).astype(np.uint8), 4, tRNS=struct.pack(">H", 3)),
    "transparent grey, 2 bits": png(np.where(MARK, 3, 1).astype(np.uint8), 2, tRNS=struct.pack(">H", 1)),
    "transparent grey, 16 bits": png(np.where(MARK, 900, 300), 16, tRNS=struct.pack(">H", 300)),
    "transparent colour": png(GROUND - 9 * ~MARK[..., None], kind=2, tRNS=struct.pack(">HHH", 246, 246, 246)),
    "transparent colour, 16 bits": png(np.where(RED, 900, 300), 16, 2, tRNS=struct.pack(">HHH", 300, 300, 300)),
}


def pair(tmp_path, data):
    for folder, content in (("images", pil(BYTES, "png")), ("masks", data)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_bytes(content)
    return load_pairs(tmp_path / "images", tmp_path / "masks")


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_what_a_person_sees(tmp_path, name):
    mask = pair(tmp_path, MASKS[name]).masks[0]
    assert (mask != MARK).sum() <= (20 if "JPEG" in name else 0)  # pixels of the edge


@pytest.mark.parametrize("data, reason", [
    (pil(~MARK * np.uint8(254) + 1, "png"), "foreground all over: expected a black or transparent ground"),
    (pil(GROUND, "jpeg"), "foreground all over"), (pil(with_alpha(0 * WHITE, BYTES), "png"), "are all empty"),
    (pil(LABELS, "jpeg"), "are all empty"), (tif(np.where(MARK, np.nan, 0).astype(np.float32)), "not finite"),
    (tif(np.where(MARK, 1.5, -0.5).astype(np.float32)), "fractions beyond 0 and 1"),
])
def test_masks_that_are_refused(tmp_path, data, reason):
    with pytest.raises(ValueError, match=reason):
        pair(tmp_path, data)


# ---------------------------------------------------------------------------------------------- large


@pytest.mark.parametrize("data", [pil(GREY, "png"), pil(GREY, compression="tiff_lzw"), tif(GREY), pil(GREY, "gif")])
def test_memory_is_the_only_limit(tmp_path, monkeypatch, data):
    (tmp_path / "a").write_bytes(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    np.testing.assert_array_equal(read_micrograph(tmp_path / "a"), GREY)
    load_picture(tmp_path / "a")
    (tmp_path / "b").write_bytes(lzw_rgb)
    read_micrograph(tmp_path / "b")
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(reading, "MEMORY", 1000)
    with pytest.raises(ValueError, match="20×24 pixels do not fit into 0 GB of memory"):
        read_micrograph(tmp_path / "a")


def test_threads_leave_pillow_and_warnings_as_they_were(tmp_path):
    (tmp_path / "a").write_bytes(pil(GREY, "png"))
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda _: read_micrograph(tmp_path / "a"), range(100)))
    np.testing.assert_array_equal(images, [GREY] * 100)
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


@pytest.mark.slow
def test_a_section_of_190_megapixels(tmp_path):
    section = np.arange(190_000_000, dtype=np.uint32).astype(np.uint8).reshape(19_000, 10_000)
    for name, data in (("a.tif", tif(section)), ("a.png", pil(section, "png", compress_level=1))):
        (tmp_path / name).write_bytes(data)
        np.testing.assert_array_equal(read_micrograph(tmp_path / name), section)
