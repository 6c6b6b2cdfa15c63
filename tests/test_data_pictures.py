"""Pictures as people keep them: more than eight bits, turned by their camera, transparent, in any format."""

from __future__ import annotations

import struct
import warnings

import numpy as np
import pytest
import torch

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

from ucmkd_fast.data import open_data  # noqa: E402
from ucmkd_fast.data.images import ImageTransform, normalised, read_image  # noqa: E402
from ucmkd_fast.data.pixels import ImageReading, picture_suffixes  # noqa: E402

RAMP = np.linspace(0, 65535, 64).round().astype(np.uint16)[None].repeat(16, 0)  # from black to white
COLOURS = np.random.default_rng(0).integers(0, 255, (12, 20, 3)).astype(np.uint8)
GLYPH = np.zeros((20, 20, 4), np.uint8)  # black on transparent ground, which is black too
GLYPH[5:15, 5:15, 3] = 255


def pixels(path, **options):
    return np.asarray(read_image(path, ImageReading(**options)))


def tiff_of_12_bits(values):
    """Two samples in three bytes."""
    height, width = values.shape
    bits = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(height, width, 2), axis=2)[:, :, 4:]
    return tiff(width, height, 12, np.packbits(bits.reshape(height, -1), axis=1).tobytes())


def tiff(width, height, bits, content, photometric=1, sample_format=1):
    """A grey TIFF of kinds that Pillow reads and does not write."""
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, None), (277, 1)]
    tags += [(278, height), (279, len(content)), (339, sample_format)]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, start if value is None else value) for tag, value in tags
    )
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + content


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a.png", RAMP),
        ("a.tif", RAMP),
        ("a.pgm", RAMP),
        ("a.jp2", RAMP),
        ("integers of 32 bits.tif", RAMP.astype(np.int32)),
        ("floats.tif", (RAMP / 65535).astype(np.float32)),
        ("floats.pfm", (RAMP / 65535).astype(np.float32)),
    ],
)
def test_grey_of_more_than_eight_bits_is_scaled_by_its_depth(tmp_path, name, values):
    Image.fromarray(values).save(tmp_path / name)
    found = pixels(tmp_path / name)
    assert np.abs(found - RAMP / 257.0).max() < 1e-3  # all 65,536 shades, not 256
    eight = Image.fromarray((RAMP // 257).astype(np.uint8)).convert("RGB")
    assert (normalised(read_image(tmp_path / name)) - normalised(eight)).abs().max() < 0.03


def test_grey_of_twelve_bits(tmp_path):
    (tmp_path / "true.tif").write_bytes(tiff_of_12_bits(RAMP // 16))
    assert np.abs(pixels(tmp_path / "true.tif") - RAMP // 16 * (255 / 4095)).max() < 1e-3
    Image.fromarray(RAMP // 16).save(tmp_path / "held.png")  # in sixteen bits, which do not say so
    with pytest.warns(UserWarning, match="no value over 4095 .* say depth: 12"):
        dark = pixels(tmp_path / "held.png")
    assert np.abs(dark - RAMP // 16 / 257).max() < 1e-3 and len(np.unique(dark)) == 64
    assert np.abs(pixels(tmp_path / "held.png", depth=12) - RAMP // 16 * (255 / 4095)).max() < 1e-3
    with pytest.raises(ValueError, match=r"held\.png: .*grey values from 0 to 4095, expected 0 to 1023"):
        pixels(tmp_path / "held.png", depth=10)


@pytest.mark.parametrize(
    "values",
    [
        RAMP.astype(np.int32) * 3,
        -RAMP.astype(np.int32),
        RAMP.astype(np.float32),
        RAMP / np.float32(65535) - 0.5,
    ],
)
def test_grey_whose_scale_nobody_knows_is_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: not a readable picture: grey values from .*depth says"):
        pixels(tmp_path / "a.tif")


def test_NaN_is_no_grey(tmp_path):
    values = (RAMP / 65535).astype(np.float32)
    values[2, 3] = np.nan
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: .*NaN"):
        pixels(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_pictures_stand_upright(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(COLOURS).save(path, exif=exif, **options)
    plain = tmp_path / f"plain{suffix}"
    Image.fromarray(COLOURS).save(plain, **options)
    stored = pixels(plain)
    upright = [  # EXIF 2.3: where the stored first row and first column belong
        stored,
        stored[:, ::-1],
        stored[::-1, ::-1],
        stored[::-1],
        stored.swapaxes(0, 1),
        np.rot90(stored, -1),
        stored[::-1, ::-1].swapaxes(0, 1),
        np.rot90(stored),
    ][orientation - 1]
    assert np.array_equal(pixels(path), upright)


def test_deep_grey_stands_upright_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=exif)
    assert np.allclose(pixels(tmp_path / "a.png"), np.rot90(RAMP / 257.0, -1), atol=1e-3)


def test_a_broken_block_of_exif_does_not_matter(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg", exif=b"Exif\0\0no such thing")
    assert pixels(tmp_path / "a.jpg").shape == COLOURS.shape


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.gif", "a.tga", "palette.png", "grey.png"])
def test_what_is_transparent_shows_the_background(tmp_path, name):
    image = Image.fromarray(GLYPH)
    if name == "palette.png":
        image = image.quantize(4)
    if name == "grey.png":
        image = image.convert("LA")
    image.save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    white = pixels(tmp_path / name)
    assert (white[5:15, 5:15] == 0).all() and (white[:5] == 255).all() and white.mean() == 0.75 * 255
    assert not pixels(tmp_path / name, background="black").any()
    assert (pixels(tmp_path / name, background=[10, 20, 30])[0, 0] == (10, 20, 30)).all()
    assert (pixels(tmp_path / name, background="#00ff00")[0, 0] == (0, 255, 0)).all()


def test_half_transparent_is_mixed_and_a_transparent_shade_counts(tmp_path):
    half = np.zeros((4, 4, 4), np.uint8)
    half[..., 0], half[..., 3] = 200, 51  # a fifth
    Image.fromarray(half).save(tmp_path / "a.png")
    assert (pixels(tmp_path / "a.png")[0, 0] == (244, 204, 204)).all()
    Image.new("L", (4, 4), 7).save(tmp_path / "b.png", transparency=7)
    assert (pixels(tmp_path / "b.png") == 255).all()
    Image.fromarray(RAMP).save(tmp_path / "c.png", transparency=0)
    deep = pixels(tmp_path / "c.png")
    assert (deep[:, 0] == 255).all() and (deep[:, 1] == 4).all() and (deep[:, -1] == 255).all()


@pytest.mark.parametrize("wrong", ["wite", [1, 2], [300, 0, 0], 3, None])
def test_a_background_that_is_no_colour_is_refused_before_anything_is_read(tmp_path, wrong):
    with pytest.raises(ValueError, match="background must be a colour"):
        open_data({"name": "image-folder", "root": tmp_path, "background": wrong})
    with pytest.raises(ValueError, match="depth must be the bits"):
        open_data({"name": "image-folder", "root": tmp_path, "depth": 7})


def test_every_format_gives_the_same_picture(tmp_path):
    smooth = Image.fromarray(COLOURS[:3, :4]).resize((40, 30))
    for name in ("a.png", "b.bmp", "c.tif", "d.tiff", "e.jfif", "f.ppm", "g.webp", "h.gif", "i.tga"):
        (tmp_path / "one").mkdir(exist_ok=True)
        smooth.save(
            tmp_path / "one" / name, **({"format": "JPEG", "quality": 95} if name == "e.jfif" else {})
        )
    data = open_data({"name": "image-folder", "root": tmp_path, "image_size": 16, "augment": "none"})
    assert len(data) == 9 and ".eps" not in picture_suffixes()
    x, _ = data.batch(torch.arange(9))
    expected = ImageTransform(16)(smooth)
    lossless = [k for k, name in enumerate("abcdefghi") if name not in "egh"]
    assert torch.equal(x[lossless], expected.expand(len(lossless), -1, -1, -1))
    assert (x - expected).abs().mean() < 0.1  # JPEG, WebP, and GIF's 256 colours


def test_options_reach_the_pictures_of_a_folder(tmp_path):
    (tmp_path / "glyphs").mkdir()
    Image.fromarray(GLYPH).save(tmp_path / "glyphs" / "a.png")
    Image.fromarray(RAMP // 16).save(tmp_path / "glyphs" / "b.png")
    spec = {"name": "image-folder", "root": tmp_path, "image_size": 8, "augment": "none"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = open_data({**spec, "background": "black", "depth": 12})
        glyph, ramp = data.batch(torch.arange(2))[0]
    assert torch.equal(glyph, normalised(Image.new("RGB", (8, 8))))
    assert torch.allclose(
        ramp, ImageTransform(8)(Image.fromarray((RAMP / 257).astype(np.float32))), atol=0.02
    )
    for augment in ("random-crop", "center-crop"):  # deep grey goes through all of them
        drawn = open_data({**spec, "augment": augment, "depth": 12}).drawn_batch(torch.arange(2), (1, 2))[0]
        assert drawn.shape == (2, 3, 8, 8) and torch.isfinite(drawn).all()


def test_what_runs_other_programs_is_no_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(ValueError, match=r"a\.png: not a readable picture"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("kind", "white", "sample_format"), [("u1", 255, 1), ("<u2", 65535, 1), ("<f4", 1, 3)], ids=str
)
def test_grey_whose_zero_is_white(tmp_path, kind, white, sample_format):
    values = (np.linspace(0, 1, 64) * white).astype(kind)
    bits = values.itemsize * 8
    for name, photometric in (("black", 1), ("white", 0)):
        content = tiff(8, 8, bits, values.tobytes(), photometric, sample_format)
        (tmp_path / f"{name}.tif").write_bytes(content)
    black, white_is_zero = pixels(tmp_path / "black.tif"), pixels(tmp_path / "white.tif")
    assert black.flat[0] == 0 and white_is_zero.flat[0] == 255
    np.testing.assert_allclose(white_is_zero, 255 - black.astype(np.float32), atol=1e-4)


def test_signed_grey_is_refused(tmp_path):
    for kind in ("i1", "<i2"):
        values = (np.arange(64) - 32).astype(kind)
        (tmp_path / "a.tif").write_bytes(tiff(8, 8, values.itemsize * 8, values.tobytes(), sample_format=2))
        with pytest.raises(ValueError, match=r"a\.tif: .*(signed|from -32)"):
            pixels(tmp_path / "a.tif")


@pytest.mark.parametrize(("content", "says"), [(b"", "it is empty"), (b"hello", "begins with b'hello'")])
def test_what_is_no_picture_is_told_without_an_object_in_memory(tmp_path, content, says):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.png: not a readable picture: {says}|it {says}"):
        pixels(tmp_path / "a.png")
