"""Picture files are read as what they show."""

import numpy as np
import pytest
from PIL import Image

from pruning_lab.datasets.pictures import Pictures, check_picture, read_picture
from pruning_lab.errors import UserError

RAMP = np.arange(16).reshape(2, 8) / 15


def shown(path):
    """RGB from 0 to 1, rows by columns by channels."""
    check_picture(str(path))
    picture = read_picture(str(path))
    if isinstance(picture, Image.Image):
        assert picture.mode == "RGB"
        return np.asarray(picture) / 255
    return picture.permute(1, 2, 0).numpy()


def saved(folder, pixels, suffix="png", mode=None, **options):
    path = folder / f"it.{suffix}"
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("kind", "top", "suffix"),
    [
        (np.uint16, 65535, "png"), (np.uint16, 65535, "tif"), (np.uint16, 65535, "pgm"),
        (np.float32, 1, "tif"), (np.uint8, 255, "png"), (np.uint8, 255, "pgm"),
    ],
)  # fmt: skip
def test_grey_is_what_it_is_at_any_depth(kind, top, suffix, tmp_path):
    found = shown(saved(tmp_path, (RAMP * top).astype(kind), suffix))
    np.testing.assert_allclose(found, np.repeat(RAMP[..., None], 3, 2), atol=1e-6)


def test_twelve_bits_of_a_tiff_are_scaled_by_them(tmp_path):
    path = saved(tmp_path, np.full((2, 8), 0x0FF0, np.uint16), "tif")
    entry = bytes.fromhex("0201 0300 01000000")  # bits a sample, of one
    assert path.read_bytes().count(entry + b"\x10\0") == 1
    path.write_bytes(path.read_bytes().replace(entry + b"\x10\0", entry + b"\x0c\0"))
    # two samples in three bytes: F0 0F F0 are the 12-bit numbers 0xF00 and 0xFF0
    assert set((shown(path).ravel() * 4095).round().astype(int)) <= {0xF00, 0xFF0, 0x0FF, 0x00F}


@pytest.mark.parametrize("mode", ["1", "P", "L", "CMYK", "YCbCr", "RGB"])
def test_modes_of_eight_bits_show_black_and_white(mode, tmp_path):
    pixels = np.repeat(np.array([[0, 255], [255, 0]], np.uint8)[..., None], 3, 2)
    found = shown(saved(tmp_path, pixels, "tif", mode))
    np.testing.assert_allclose(found, pixels / 255, atol=0.01)


def test_transparent_pixels_are_white_and_opaque_ones_as_they_are(tmp_path):
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    expected = np.array([[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]) / 255
    np.testing.assert_allclose(shown(saved(tmp_path, pixels)), expected, atol=1e-6)
    grey = pixels[..., [0, 3]]
    found = shown(saved(tmp_path, Image.fromarray(grey, "LA")))
    np.testing.assert_allclose(found[0, :, 0], [10 / 255, 1, 0.8], atol=1e-6)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    found = shown(saved(tmp_path, palette, transparency=1))
    np.testing.assert_allclose(found, np.array([[[10, 20, 30], [255] * 3]]) / 255, atol=1e-6)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_picture_is_turned_as_its_camera_was(suffix, kind, tmp_path):
    top = np.iinfo(kind).max
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    found = shown(saved(tmp_path, (RAMP * top).astype(kind), suffix, exif=exif))
    np.testing.assert_allclose(found[..., 0], np.rot90(RAMP, -1), atol=1e-6)


def inverted(folder):
    """A TIFF whose 0 is white."""
    path = saved(folder, (RAMP * 65535).astype(np.uint16), "tif")
    tag = bytes.fromhex("0601 0300 01000000")
    path.write_bytes(path.read_bytes().replace(tag + b"\1", tag + b"\0"))
    return path


def cut(folder):
    path = saved(folder, np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:3000])
    return path


REFUSED = {
    "decimals to 255": (
        lambda at: saved(at, (RAMP * 255).astype(np.float32), "tif"), "numbers from 0.0 to 255.0",
    ),
    "decimals below 0": (
        lambda at: saved(at, (RAMP - 0.5).astype(np.float32), "tif"), "numbers from -0.5 to 0.5",
    ),
    "NaN": (lambda at: saved(at, np.full((2, 2), np.nan, np.float32), "tif"), "numbers from nan"),
    "whole numbers of 32 bits": (
        lambda at: saved(at, (RAMP * 2**20).astype(np.int32), "tif"), "mode I.* what is white",
    ),
    "white is 0": (inverted, "mode I;16.* do not say what is white"),
    "Lab": (lambda at: saved(at, Image.new("LAB", (2, 2)), "tif"), "mode LAB"),
    "pages": (
        lambda at: saved(at, RAMP.astype(np.uint8), "tif", save_all=True,
                         append_images=[Image.new("L", (2, 2))]),
        "it holds 2 pictures; save the one that is meant",
    ),
    "moving": (
        lambda at: saved(at, RAMP.astype(np.uint8), "webp", save_all=True,
                         append_images=[Image.new("L", (8, 2), 255)]),
        "it holds 2 pictures",
    ),
    "182 million pixels": (
        lambda at: saved(at, Image.new("1", (14000, 13000))), "DecompressionBombError: Image size",
    ),
    "cut short": (cut, "Truncated|truncated|broken"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_as_it_is_is_refused_by_name(case, tmp_path):
    make, message = REFUSED[case]
    path = make(tmp_path)
    with pytest.raises(UserError, match=rf"/it\.\w+ cannot be read as a picture: .*({message})"):
        shown(path)


def test_a_name_that_is_no_text_is_shown_escaped(tmp_path):
    path = tmp_path / "\udcc4\udce3.png"
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"/\\udcc4\\udce3.png cannot be read") as refusal:
        shown(path)
    assert str(refusal.value).encode()


def test_files_are_told_apart_by_content_alone(tmp_path):
    class Folder:
        samples = []  # noqa: RUF012

    for name, content in (("a", b"one"), ("\udcc4", b"two"), ("c", b"one")):
        (tmp_path / name).write_bytes(content)
        Folder.samples.append((str(tmp_path / name), 0))
    found = Pictures(Folder, [0, 1, 2]).contents("test", 3)
    assert found.images[0] == found.images[2] != found.images[1]
    assert found.whole[0] == found.whole[2]
