import io
import struct

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image, ImageFile

from mmkt.data.decode import DecodeError, Limits, audio, image, picture, text, waveform

RNG = np.random.default_rng(0)


def encode(picture, format="PNG", **options):
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def wav(samples, rate=16000, format="WAV", subtype="FLOAT"):
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=format, subtype=subtype)
    return out.getvalue()


def pixels(data, **limits):
    result = image(data, Limits(**limits))
    assert result.mode == "RGB"
    return np.asarray(result).astype(int)


def test_rgb_and_grey_round_trip():
    rgb = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)
    assert (pixels(encode(Image.fromarray(rgb))) == rgb).all()
    assert (pixels(encode(Image.fromarray(rgb[..., 0]))) == rgb[..., :1]).all()


def test_palette():
    rgb = np.kron(RNG.integers(0, 256, (2, 2, 3)), np.ones((3, 3, 1))).astype(np.uint8)
    palette = Image.fromarray(rgb).quantize(8)
    assert palette.mode == "P"
    assert (pixels(encode(palette)) == np.asarray(palette.convert("RGB"))).all()
    assert np.abs(pixels(encode(palette)) - rgb).max() <= 4


def test_palette_with_transparency_shows_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    for transparency in (1, b"\xff\x00"):
        assert pixels(encode(palette, transparency=transparency)).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_alpha_is_composited_on_white():
    rgba = RNG.integers(0, 256, (6, 6, 4), dtype=np.uint8)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(pixels(encode(Image.fromarray(rgba))) - expected).max() <= 1
    la = Image.merge("LA", (Image.fromarray(rgba[..., 0]), Image.fromarray(rgba[..., 3])))
    expected = rgba[..., :1] * alpha + 255 * (1 - alpha)
    assert np.abs(pixels(encode(la)) - expected).max() <= 1


def test_transparent_colour_of_rgb_png():
    data = encode(Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)), transparency=(1, 2, 3))
    assert pixels(data).tolist() == [[[255, 255, 255], [4, 5, 6]]]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(format):
    grey = RNG.integers(0, 65536, (9, 9)).astype(np.uint16)
    data = encode(Image.fromarray(grey), format)
    assert Image.open(io.BytesIO(data)).mode == "I;16"
    assert (pixels(data)[..., 0] == np.round(grey / 257)).all()


def test_sixteen_bits_big_endian_and_pgm():
    grey = RNG.integers(0, 65536, (4, 6)).astype(np.uint16)
    data = b"P5 6 4 65535\n" + grey.astype(">u2").tobytes()
    assert Image.open(io.BytesIO(data)).mode == "I"
    assert (pixels(data)[..., 0] == np.round(grey / 257)).all()
    header = b"MM\0*\0\0\0\x08" + struct.pack(">H", 8)
    fields = [
        (256, 4, 6),
        (257, 4, 4),
        (258, 3, 16 << 16),
        (259, 3, 1 << 16),
        (262, 3, 1 << 16),
        (273, 4, 110),
        (277, 3, 1 << 16),
        (279, 4, 48),
    ]
    data = header + b"".join(struct.pack(">HHII", tag, kind, 1, value) for tag, kind, value in fields) + struct.pack(">I", 0)
    data = data.ljust(110, b"\0") + grey.astype(">u2").tobytes()
    assert Image.open(io.BytesIO(data)).mode == "I;16B"
    assert (pixels(data)[..., 0] == np.round(grey / 257)).all()


def test_floating_point_and_wide_integers():
    values = RNG.random((5, 5)).astype(np.float32)
    assert (pixels(encode(Image.fromarray(values), "TIFF"))[..., 0] == np.round(values.astype(float) * 255)).all()
    for wrong in (values * 300, values - 0.5, np.full((5, 5), np.nan, np.float32), (values * 1e6).astype(np.int32)):
        with pytest.raises(DecodeError, match="grey levels run from"):
            image(encode(Image.fromarray(wrong), "TIFF"))


def test_cmyk_and_one_bit():
    cmyk = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert (pixels(encode(cmyk, "TIFF")) == [0, 255, 255]).all()
    assert np.abs(pixels(encode(cmyk, "JPEG", quality=100)) - [0, 255, 255]).max() <= 4
    bits = RNG.integers(0, 2, (9, 9), dtype=np.uint8)
    assert (pixels(encode(Image.fromarray(bits * 255).convert("1")))[..., 1] == bits * 255).all()


def test_first_frame_of_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert (pixels(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [255, 0, 0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    upright = RNG.integers(0, 256, (3, 5, 3), dtype=np.uint8)
    # how a camera stores an upright picture under each orientation: the inverse of what the tag asks for
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(turn(upright))), exif=exif)
    assert (pixels(data) == upright).all()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_truncated_files_are_refused(format, share, monkeypatch):
    data = encode(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), format)
    image(data)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # another library may have set it
    with pytest.raises(DecodeError):
        image(data[: int(len(data) * share)])
    assert ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("data", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_no_image(data):
    with pytest.raises(DecodeError, match=r"no image format|truncated or damaged"):
        image(data)


def test_pixel_limit_from_the_header_both_ways(monkeypatch):
    data = encode(Image.new("L", (300, 200)))
    with pytest.raises(DecodeError, match=r"raise data\.max_pixels"):
        image(data, Limits(pixels=59_999))
    with pytest.raises(DecodeError, match=r"raise data\.max_pixels"):
        image(data[:60], Limits(pixels=1000))  # the header alone: nothing was decoded
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # ours counts, not Pillow's
    assert image(data, Limits(pixels=60_000)).size == (300, 200)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_pictures_in_memory():
    rgb = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    for value in (
        rgb,
        Image.fromarray(rgb),
        torch.from_numpy(rgb).permute(2, 0, 1),
        rgb / 255,
        torch.from_numpy(rgb / 255).permute(2, 0, 1),
    ):
        assert (np.asarray(picture(value)) == rgb).all()
    assert (np.asarray(picture(rgb[..., :1])) == rgb[..., :1]).all()
    assert (np.asarray(picture(rgb[..., 0].astype(np.uint16) * 257)) == rgb[..., :1]).all()
    for wrong, message in ((rgb / 100, "lies in"), (rgb.astype(int), "uint8"), (rgb[None], "shape"), (rgb[:0], "shape")):
        with pytest.raises(DecodeError, match=message):
            picture(wrong)
    with pytest.raises(DecodeError, match=r"data\.max_pixels"):
        picture(rgb, Limits(pixels=23))
    with pytest.raises(DecodeError, match="truncated"):
        picture(Image.open(io.BytesIO(encode(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")[:2000])))


def test_wav_round_trip_and_stereo_mix():
    samples = RNG.uniform(-1, 1, (1000, 2)).astype(np.float32)
    mono = audio(wav(samples[:, 0]), 16000)
    assert mono.dtype == torch.float32
    assert np.array_equal(mono.numpy(), samples[:, 0])
    assert np.allclose(audio(wav(samples), 16000).numpy(), samples.mean(1), atol=1e-7)
    assert np.allclose(audio(wav(samples[:, 0], subtype="PCM_16"), 16000).numpy(), samples[:, 0], atol=1 / 32768)


@pytest.mark.parametrize(("format", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
@pytest.mark.parametrize("rate", [44100, 8000])
def test_resampling_keeps_the_frequency(format, subtype, rate):
    hertz = 1000
    sine = 0.5 * np.sin(2 * np.pi * hertz * np.arange(rate) / rate)
    for to in (16000, 11025):
        result = audio(wav(sine, rate, format, subtype), to)
        assert abs(len(result) - to) < 0.15 * to  # MP3 pads
        spectrum = np.fft.rfft(result[: to // 2].numpy() * np.hanning(to // 2))
        assert np.abs(spectrum).argmax() * to / (to // 2) == pytest.approx(hertz, abs=3)
        assert result[to // 4 : to // 2].abs().max() == pytest.approx(0.5, abs=0.03)
    assert len(audio(wav(sine, rate), None)) == rate


def test_loud_square_stays_in_bounds():
    square = np.sign(np.sin(np.arange(4410) / 7)).astype(np.float32)
    result = audio(wav(square, 44100), 16000)
    assert result.abs().max() == 1


def test_refused_audio():
    for data in (b"", b"RIFF", b"no sound", wav(np.zeros(100))[:20]):
        with pytest.raises(DecodeError, match="no sound file"):
            audio(data, 16000)
    with pytest.raises(DecodeError, match="no samples"):
        audio(wav(np.zeros(0)), 16000)
    for bad in (np.nan, np.inf):
        with pytest.raises(DecodeError, match="1 of 3 samples are NaN"):
            audio(wav(np.array([0, bad, 0.5])), 16000)
    with pytest.raises(DecodeError, match=r"lasts 1\.5 s, the limit is 1 s: cut it, or raise data\.max_seconds"):
        audio(wav(np.zeros(24000)), 16000, Limits(seconds=1))
    assert len(audio(wav(np.zeros(16000)), 16000, Limits(seconds=1))) == 16000
    with pytest.raises(DecodeError, match="reach 20000"):
        audio(wav(np.array([0.0, 20000.0])), 16000)


def test_waveforms_in_memory():
    samples = RNG.uniform(-1, 1, 500).astype(np.float32)
    assert torch.equal(waveform(samples, 16000, 16000), torch.from_numpy(samples))
    assert torch.equal(waveform(torch.from_numpy(np.stack([samples, -samples])), 16000, 16000), torch.zeros(500))
    assert waveform(np.array([-32768, 16384], dtype=np.int16), 8000, 8000).tolist() == [-1.0, 0.5]
    assert len(waveform(samples, 8000, 16000)) == 1000
    for wrong, message in (
        (samples[:, None].repeat(2, 1), "channels, samples"),
        (samples.astype(np.uint8), "int16"),
        (samples[:0], "no samples"),
    ):
        with pytest.raises(DecodeError, match=message):
            waveform(wrong, 16000, 16000)


def test_text():
    assert text("  as it is\n") == "  as it is\n"
    assert text(12) == "12"
    assert len(text("x" * 10, Limits(characters=10))) == 10
    with pytest.raises(DecodeError, match=r"11 characters, the limit is 10: raise data\.max_characters"):
        text("x" * 11, Limits(characters=10))
    for wrong in (True, 1.5, b"x", None, ["x"]):
        with pytest.raises(DecodeError, match="holds a string"):
            text(wrong)
