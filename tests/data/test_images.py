"""Reading image files: every kind becomes the same 8-bit RGB picture, or a reason why it does not."""

from __future__ import annotations

import os
import struct
import subprocess
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from xmodal.data.images import read_image

RAMP = np.linspace(0, 1, 30 * 20).reshape(20, 30)
"""From black to white, upper left to lower right."""

GRAY = np.rint(RAMP * 255).astype(np.uint8)
SIXTEEN = np.rint(RAMP * 65535).astype(np.uint16)


def gray_of(path):
    """What is read, checked to be gray."""
    pixels = np.asarray(read_image(path)).astype(int)
    assert pixels.ndim == 3
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[:, :, 0]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("16.png", SIXTEEN),
        ("16.tif", SIXTEEN),
        ("16.pgm", SIXTEEN),
        ("float.tif", RAMP.astype(np.float32)),
        ("float_255.tif", (RAMP * 255).astype(np.float32)),
        ("float_signed.tif", (RAMP * 2 - 1).astype(np.float32)),
        ("float_large.tiff", (RAMP * 3e38).astype(np.float32)),
        ("32.tif", np.rint(RAMP * 2**30).astype(np.int32)),
        ("32_small.tif", np.rint(RAMP * 255).astype(np.int32)),
        ("32_signed.tif", np.rint(RAMP * 2000 - 1000).astype(np.int32)),
    ],
)
def test_more_than_eight_bits_are_scaled(tmp_path, name, values):
    Image.fromarray(values).save(tmp_path / name)
    assert abs(gray_of(tmp_path / name) - GRAY).max() <= 1


def test_the_range_of_a_type_leaves_a_dark_picture_dark(tmp_path):
    Image.fromarray(SIXTEEN // 2).save(tmp_path / "16.png")
    Image.fromarray((RAMP / 2).astype(np.float32)).save(tmp_path / "float.tif")
    for name in ("16.png", "float.tif"):
        assert abs(gray_of(tmp_path / name) - GRAY / 2).max() <= 1


def test_unsigned_32_bits_do_not_wrap(tmp_path):
    values = np.rint(RAMP * (2**32 - 1)).astype(np.uint32)
    tags = [(256, 30), (257, 20), (258, 32), (259, 1), (262, 1), (273, 8), (277, 1), (278, 20), (279, values.nbytes)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = struct.pack("<2sHI", b"II", 42, 8 + values.nbytes)
    (tmp_path / "u32.tif").write_bytes(header + values.tobytes() + directory + bytes(4))
    assert abs(gray_of(tmp_path / "u32.tif") - GRAY).max() <= 1


def test_a_transparent_value_of_sixteen_bits_is_white(tmp_path):
    values = np.full((4, 4), 100, np.uint16)
    values[0] = 30_000
    Image.fromarray(values).save(tmp_path / "16.png", transparency=100)
    assert gray_of(tmp_path / "16.png")[:, 0].tolist() == [117, 255, 255, 255]


def test_values_that_are_not_finite_are_refused(tmp_path):
    Image.fromarray(np.array([[0.5, np.nan]], np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(ValueError, match=r"cannot read .*nan\.tif: it has values that are not finite"):
        read_image(tmp_path / "nan.tif")


def colored(size=(30, 20)):
    image = Image.new("RGB", size, (200, 40, 40))
    image.paste((40, 40, 200), (0, 0, size[0] // 2, size[1] // 2))  # the upper left is blue
    return image


def is_blue(pixel):
    return pixel[2] > 150 > 100 > pixel[0]


@pytest.mark.parametrize(
    "suffix", ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "avif", "tif", "tiff", "bmp", "gif", "ppm", "pnm", "pbm"]
)
def test_formats(tmp_path, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / f"x.{suffix}"
    colored().save(path, **({"format": "JPEG"} if suffix == "jfif" else {}))
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (30, 20))
    assert is_blue(image.getpixel((5, 5)))
    assert not is_blue(image.getpixel((25, 15)))


def test_heic_where_its_plug_in_is_installed(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    colored((64, 64)).save(tmp_path / "x.heic")
    assert is_blue(read_image(tmp_path / "x.heic").getpixel((5, 5)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LA", "RGBA"])
def test_modes(tmp_path, mode):
    image = Image.new("RGB", (8, 8), "white") if mode in ("1", "L", "LA") else Image.new("RGB", (8, 8), (250, 120, 10))
    wanted = image.getpixel((0, 0))
    path = tmp_path / ("x.png" if mode in ("1", "L", "P", "LA", "RGBA") else "x.tif")
    (image.convert("RGB").convert(mode) if mode != "P" else image.quantize(4)).save(path)
    assert max(abs(a - b) for a, b in zip(read_image(path).getpixel((4, 4)), wanted, strict=True)) <= 6


def test_transparency_shows_white(tmp_path):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    for name in ("rgba.png", "rgba.webp"):
        image.save(tmp_path / name, lossless=True)
        assert [read_image(tmp_path / name).getpixel((x, 0)) for x in (0, 7)] == [(0, 0, 255), (255, 255, 255)]
    palette = image.convert("RGB").quantize(4)
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((7, 0)))
    assert read_image(tmp_path / "palette.png").getpixel((7, 0)) == (255, 255, 255)


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for name in ("x.gif", "x.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert read_image(tmp_path / name).getpixel((4, 4)) == (255, 0, 0)


def tagged(path, orientation, *more):
    """A JPEG with an orientation and other tags, each given as (tag, type, count, value)."""
    colored().save(path, quality=95)
    tags = sorted([(0x0112, 3, 1, orientation), *more])
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    content = path.read_bytes()
    path.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:])


X_RESOLUTION_AS_TEXT = (0x011A, 2, 4, int.from_bytes(b"72\0\0", "little"))
CORNERS = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}
"""Where the upper left of what is stored belongs, right and down, for each orientation."""


@pytest.mark.parametrize("more", [(), (X_RESOLUTION_AS_TEXT,)], ids=["plain", "odd"])
@pytest.mark.parametrize("orientation", [*CORNERS, 0, 9, 300])
def test_photographs_are_turned_upright_whatever_else_exif_says(tmp_path, orientation, more):
    tagged(tmp_path / "x.jpg", orientation, *more)
    for longest in (None, 24):
        image = read_image(tmp_path / "x.jpg", longest=longest)
        assert (image.width > image.height) == (orientation not in (5, 6, 7, 8))
        right, down = CORNERS.get(orientation, (0, 0))
        blue = [
            (x, y)
            for x in (0, 1)
            for y in (0, 1)
            if is_blue(image.getpixel((image.width * (1 + 2 * x) // 4, image.height * (1 + 2 * y) // 4)))
        ]
        assert blue == [(right, down)]


def test_tiff_is_turned_once(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    colored().save(tmp_path / "x.tif", exif=exif)
    image = read_image(tmp_path / "x.tif")
    assert image.size == (20, 30)
    assert is_blue(image.getpixel((15, 5)))


@given(data=st.binary(max_size=60), place=st.integers(0, 60))
def test_damaged_exif_does_not_matter(tmp_path_factory, data, place):
    path = tmp_path_factory.mktemp("exif") / "x.jpg"
    tagged(path, 1, X_RESOLUTION_AS_TEXT)
    content = bytearray(path.read_bytes())
    at = content.index(b"Exif\0\0") + 6 + place % 30
    end = min(at + len(data), content.index(b"Exif\0\0") + 38)
    content[at:end] = data[: end - at]
    path.write_bytes(content)
    assert sorted(read_image(path).size) == [20, 30]


def test_damage_is_told(tmp_path):
    path = tmp_path / "x.jpg"
    Image.effect_noise((90, 90), 50).save(path)
    whole = path.read_bytes()
    for content in (b"", b"no image", whole[: len(whole) // 2], whole[:30]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read .*x\.jpg: "):
            read_image(path)
    with pytest.raises(FileNotFoundError, match=r"no image at .*y\.jpg"):
        read_image(tmp_path / "y.jpg")
    with pytest.raises(ValueError, match="cannot read"):
        read_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"cannot read .*pipe\.png is no ordinary file"):
        read_image(tmp_path / "pipe.png")


def test_the_whole_range_of_float32_is_gray(tmp_path):
    values = np.array([[-3e38, 0, 3e38]], np.float32)  # whose range, 6e38, is beyond float32
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert np.asarray(read_image(tmp_path / "x.tif"))[0, :, 0].tolist() == [0, 128, 255]


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    with pytest.raises(ValueError, match=r"cannot read .*bomb\.png: .*3600000000 pixels.*Shrink it"):
        read_image(tmp_path / "bomb.png")


def test_large_pictures_are_read_without_a_warning(tmp_path, monkeypatch):
    colored().save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert read_image(tmp_path / "x.png").size == (30, 20)


def test_a_thumbnail_is_the_same_picture_and_smaller(tmp_path):
    for name in ("x.jpg", "x.png"):
        colored((900, 600)).save(tmp_path / name)
        image = read_image(tmp_path / name, longest=90)
        assert image.size == (90, 60)
        assert is_blue(image.getpixel((20, 20)))
        assert read_image(tmp_path / name, longest=2000).size == (900, 600)


def test_no_file_is_handed_to_another_program(tmp_path, monkeypatch):
    """Pillow gives PostScript to Ghostscript, whatever the file is called."""
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    path = tmp_path / "photograph.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(ValueError, match=r"photograph\.png: it is not an image"):
        read_image(path)
