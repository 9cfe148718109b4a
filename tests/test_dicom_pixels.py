import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import BUNDLED, change, image, noise, placed, save, series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_rescale, pixel_array
from pydicom.pixels.decoders.base import get_decoder
from pydicom.sequence import Sequence as Items

from maectl.adapter import Pixels
from maectl.errors import Unreadable
from maectl_medical.dicom import Image, assemble, describe, load, plugin
from maectl_medical.stored import Found

PIXELS = noise(8, 6)
DATA = Path(__file__).parent.parent.parent / "shared" / "data"


def found_in(path: Path) -> Found:
    described = describe(str(path.parent), path.name)
    assert isinstance(described, Image), described
    [found] = assemble([described], geometry="strict")
    assert isinstance(found, Found)
    return found


def loaded(path: Path, window: tuple[slice, ...] | None = None) -> tuple[Found, Pixels]:
    found = found_in(path)
    return found, load((str(path),), found.key, found.shape, found.dtype, window)


def of(data: Dataset, folder: Path) -> tuple[Found, Pixels]:
    return loaded(save(data, folder / "a.dcm"))


def compressed(data: Dataset, syntax: str, frames: list[bytes], **elements: Any) -> Dataset:
    data.PixelData = encapsulate(frames)
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = syntax
    return change(data, elements)


@pytest.mark.parametrize(
    ("bits", "signed", "slope", "intercept", "dtype"),
    [
        (8, 0, 1, 0, "uint8"),
        (7, 0, 1, 100, "uint8"),
        (7, 0, 1, 200, "int16"),
        (8, 1, 1, 0, "int16"),
        (12, 0, 1, 0, "int16"),
        (12, 0, 1, -1024, "int16"),
        (16, 0, 1, 0, "uint16"),
        (15, 0, 1, 1, "uint16"),
        (16, 1, 1, 0, "int16"),
        (16, 0, 1, -1024, "float32"),
        (16, 1, 1, -1024, "float32"),
        (12, 0, 1, 0.5, "float32"),
        (12, 0, 2, 0, "float32"),
    ],
)
def test_the_dtype_is_the_smallest_that_holds_all_that_the_header_allows(
    tmp_path, bits, signed, slope, intercept, dtype
):
    kind = f"{'ui'[signed]}{1 if bits <= 8 else 2}"
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    stored = noise(8, 6, low=low, high=high, dtype=kind)
    elements = {"BitsStored": bits, "RescaleSlope": slope, "RescaleIntercept": intercept, "Modality": "MR"}
    found, pixels = of(image(stored, **elements), tmp_path)
    assert found.dtype == dtype == pixels.values.dtype.name
    np.testing.assert_array_equal(pixels.values[0], stored.astype(np.float64) * slope + intercept)
    assert pixels.valid is None


@given(
    stored=st.lists(st.integers(0, 65535), min_size=12, max_size=12),
    bits=st.integers(9, 16),
    signed=st.booleans(),
    slope=st.sampled_from([1, 1, 0.5, 3]),
    intercept=st.sampled_from([0, -1024, 7, 0.25]),
    inverted=st.booleans(),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_values_are_stored_ones_by_slope_and_intercept_and_inverted_where_white_is_low(
    tmp_path, stored, bits, signed, slope, intercept, inverted
):
    raw = np.array(stored, np.uint16).reshape(4, 3)
    elements = {"BitsStored": bits, "PixelRepresentation": int(signed), "Modality": "MR"}
    elements |= {"RescaleSlope": slope, "RescaleIntercept": intercept}
    elements |= {"PhotometricInterpretation": "MONOCHROME1"} if inverted else {}
    found, pixels = of(image(raw, **elements), tmp_path)
    mine = pydicom.dcmread(tmp_path / "a.dcm").pixel_array.astype(np.int64)
    highest, lowest = ((1 << bits - 1) - 1, -(1 << bits - 1)) if signed else ((1 << bits) - 1, 0)
    wanted = (lowest + highest - mine if inverted else mine) * slope + intercept
    np.testing.assert_array_equal(pixels.values[0], wanted)
    assert found.dtype == pixels.values.dtype


def test_a_windows_own_pixels_are_read_and_only_its_files(tmp_path):
    stored = series(tmp_path, [0, 2, 4, 6])
    described = [describe(str(tmp_path), f"00{k}.dcm") for k in range(4)]
    [found] = assemble(described, geometry="strict")
    files = tuple(str(tmp_path / path) for path in found.paths)
    for gone in (0, 3):
        os.remove(files[gone])
    window = (slice(1, 3), slice(2, 7), slice(1, 4))
    pixels = load(files, found.key, found.shape, found.dtype, window)
    np.testing.assert_array_equal(pixels.values[0], stored[window].astype(int) - 1024)
    assert pixels.values.flags.writeable
    assert min(pixels.values.strides) > 0
    with pytest.raises(Unreadable, match="gone"):
        load(files, found.key, found.shape, found.dtype, None)


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.RLELossless])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16"])
def test_byte_orders_and_forms_of_files_do_not_matter(tmp_path, syntax, dtype):
    stored = noise(5, 3, low=0, high=200, dtype=dtype)
    data = image(stored, Modality="MR")
    if syntax == uid.RLELossless:
        data.compress(syntax, encoding_plugin="pydicom")
        data.save_as(tmp_path / "a.dcm")
    else:
        big = syntax == uid.ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = syntax
        if big and dtype == "uint8":
            data["PixelData"].VR = "OB"
        elif big:
            data.PixelData = stored.astype(stored.dtype.newbyteorder(">")).tobytes()
        data.save_as(tmp_path / "a.dcm", implicit_vr=syntax == uid.ImplicitVRLittleEndian, little_endian=not big)
    _, pixels = loaded(tmp_path / "a.dcm")
    np.testing.assert_array_equal(pixels.values[0], stored)
    assert pixels.values.dtype.isnative


def test_padding_is_invalid_also_as_a_range_or_beyond_the_bits_stored(tmp_path):
    stored = PIXELS.copy()
    stored[0, 0], stored[0, 1], stored[0, 2] = 7, 8, 9
    _, pixels = of(image(stored, PixelPaddingValue=7, Modality="MR"), tmp_path)
    np.testing.assert_array_equal(pixels.valid, stored != 7)
    _, pixels = of(image(stored, PixelPaddingValue=9, PixelPaddingRangeLimit=7, Modality="MR"), tmp_path)
    np.testing.assert_array_equal(pixels.valid, (stored < 7) | (stored > 9))
    outside = stored.copy()
    outside[3, 3] = 63536
    elements = {"BitsStored": 12, "RescaleSlope": 1, "RescaleIntercept": -1024}
    _, pixels = of(image(outside, PixelPaddingValue=63536, **elements), tmp_path)
    np.testing.assert_array_equal(pixels.valid, outside != 63536)
    signed = stored.astype("int16")
    signed[2, 2] = -2000
    data = image(signed, Modality="MR")
    data.add_new("PixelPaddingValue", "US", 63536)  # written unsigned, as some do
    _, pixels = of(data, tmp_path)
    np.testing.assert_array_equal(pixels.valid, signed != -2000)


def test_floating_point_pixels_are_kept_and_what_is_not_finite_is_invalid(tmp_path):
    data = image(PIXELS, PixelData=None, BitsAllocated=32, BitsStored=None, Modality="OT")
    values = np.random.default_rng(0).normal(size=(8, 6)).astype("<f4")
    values[1, 1], values[2, 2], values[3, 3] = np.nan, np.inf, 5
    data.FloatPixelData, data.FloatPixelPaddingValue = values.tobytes(), 5.0
    found, pixels = of(data, tmp_path)
    assert found.dtype == "float32"
    np.testing.assert_array_equal(pixels.values[0], values)
    np.testing.assert_array_equal(pixels.valid, np.isfinite(values) & (values != 5))


def test_a_modality_table_is_applied_at_its_ends_too(tmp_path):
    stored = noise(8, 6, high=256, dtype="uint8")
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [100, 50, 12])
    table.add_new("LUTData", "US", [int(each) for each in np.random.default_rng(3).integers(0, 4096, 100)])
    table.ModalityLUTType = "US"
    found, pixels = of(image(stored, Modality="OT", ModalityLUTSequence=Items([table])), tmp_path)
    assert (found.dtype, found.unit) == ("int16", "value")
    entries = np.array(table.LUTData)
    np.testing.assert_array_equal(pixels.values[0], entries[np.clip(stored.astype(int) - 50, 0, 99)])


@pytest.mark.parametrize("scale", [1, 256, 257])
def test_palettes_become_eight_bit_colours_whether_entries_have_eight_bits_or_sixteen(tmp_path, scale):
    stored = noise(8, 6, high=256, dtype="uint8")
    colours = np.random.default_rng(1).integers(0, 256, (3, 256))
    data = image(stored, PhotometricInterpretation="PALETTE COLOR", Modality="US")
    for name, entries in zip(("Red", "Green", "Blue"), colours, strict=True):
        setattr(data, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(data, f"{name}PaletteColorLookupTableData", (entries * scale).astype("<u2").tobytes())
    found, pixels = of(data, tmp_path)
    assert (found.shape, found.dtype, found.unit, found.channels) == (
        (3, 8, 6), "uint8", "0..255", ("red", "green", "blue"),
    )  # fmt: skip
    np.testing.assert_array_equal(pixels.values, colours[:, stored])


def test_colours_in_planes_and_as_luma_and_chroma_become_red_green_and_blue(tmp_path):
    stored = noise(8, 6, 3, high=256, dtype="uint8")
    _, interleaved = of(image(stored, Modality="US"), tmp_path)
    np.testing.assert_array_equal(interleaved.values, np.moveaxis(stored, -1, 0))
    data = image(stored, Modality="US", PlanarConfiguration=1)
    data.PixelData = np.moveaxis(stored, -1, 0).tobytes()
    _, planes = of(data, tmp_path)
    np.testing.assert_array_equal(planes.values, interleaved.values)
    _, ybr = of(image(stored, Modality="US", PhotometricInterpretation="YBR_FULL"), tmp_path)
    y, b, r = stored.astype(float).transpose(2, 0, 1)
    rgb = [y + 1.402 * (r - 128), y - 0.344136 * (b - 128) - 0.714136 * (r - 128), y + 1.772 * (b - 128)]
    np.testing.assert_allclose(ybr.values, np.clip(rgb, 0, 255), atol=1)


def test_what_changed_since_the_scan_is_unreadable(tmp_path):
    path = save(image(PIXELS, Modality="MR"), tmp_path / "a.dcm")
    found = found_in(path)
    arguments = ((str(path),), found.key, found.shape, found.dtype, None)
    whole = path.read_bytes()
    for data in (
        image(PIXELS[:5], Modality="MR"),
        image(PIXELS.astype("int16"), Modality="MR"),
        image(PIXELS, Modality="MR", BitsStored=12),
        image(PIXELS, Modality="MR", PhotometricInterpretation="MONOCHROME1"),
    ):
        save(data, path)
        with pytest.raises(Unreadable, match="changed since"):
            load(*arguments)
    path.write_bytes(whole[:-10])
    with pytest.raises(Unreadable, match="truncated"):
        load(*arguments)
    path.write_bytes(b"")
    with pytest.raises(Unreadable):
        load(*arguments)


@pytest.mark.parametrize(
    "name",
    [
        "JPEGLSNearLossless_16.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "SC_rgb_jpeg_gdcm.dcm",
        "examples_ybr_color.dcm", "JPGExtended.dcm", "JPEG2000.dcm", "image_dfl.dcm",
    ],
)  # fmt: skip
def test_truncated_files_are_rejected_or_unreadable_and_never_half_read(tmp_path, name):
    whole = (BUNDLED / name).read_bytes()
    for cut in (1, 3, 9, 20, 60, len(whole) // 20):
        (tmp_path / "a.dcm").write_bytes(whole[:-cut])
        described = describe(str(tmp_path), "a.dcm")
        if isinstance(described, Image):
            _, pixels = loaded(BUNDLED / name)
            try:
                _, mine = loaded(tmp_path / "a.dcm")
            except Unreadable:
                continue
            np.testing.assert_array_equal(mine.values, pixels.values)  # only what follows the pixels is missing


def test_frames_cut_inside_their_fragments_are_unreadable(tmp_path):
    for name in (
        "693_J2KI.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "MR_small_RLE.dcm",
    ):
        data = pydicom.dcmread(BUNDLED / name)
        [frame] = generate_frames(data.PixelData, number_of_frames=1)
        data.PixelData = encapsulate([frame[: len(frame) // 2]])
        data["PixelData"].is_undefined_length = True
        data.save_as(tmp_path / "a.dcm")
        with pytest.raises(Unreadable, match="frame 1 cannot be decoded"):
            loaded(tmp_path / "a.dcm")


def expected(path: Path) -> np.ndarray | None:
    """Values by pydicom alone, [frames or nothing, rows, columns, samples or nothing]; None where it cannot read."""
    data = pydicom.dcmread(path, force=True)
    try:
        stored = data.pixel_array
    except Exception:  # pydicom has no decoder, or the file is damaged
        return None
    if data.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(stored, data)
        return colours >> 8 if colours.dtype == np.uint16 else colours
    if data.SamplesPerPixel == 3:
        return stored
    if data.PhotometricInterpretation == "MONOCHROME1":
        stored = (1 << data.BitsStored) - 1 - stored.astype(np.int64)
        return apply_rescale(stored, data)
    return apply_modality_lut(stored, data)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("where", ["bundled", "odd", "broken"])
def test_real_files_agree_with_pydicoms_own_reading(where):
    folder = BUNDLED if where == "bundled" else DATA / "bad" / where / "dicom"
    if not folder.is_dir():
        pytest.skip("the folder ../shared/data with real images is not on this machine")
    compared = 0
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        described = describe(str(path.parent), path.name)
        wanted = expected(path) if isinstance(described, Image) else None
        if wanted is None:
            continue
        [found] = assemble([described], geometry="strict")
        pixels = load((str(path),), found.key, found.shape, found.dtype, None)
        if wanted.shape[-1] == 3 == found.shape[0]:
            wanted = np.moveaxis(wanted, -1, 0)
        wanted = wanted.reshape(found.shape)
        valid = np.ones(found.shape[1:], bool) if pixels.valid is None else pixels.valid
        np.testing.assert_allclose(pixels.values[:, valid], wanted[:, valid].astype(found.dtype), rtol=1e-6)
        compared += 1
    assert compared >= {"bundled": 60, "odd": 13, "broken": 0}[where]


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("MR_small_jp2klossless.dcm", ("pillow", "gdcm")),
        ("693_J2KI.dcm", ("gdcm",)),
        ("JPEG2000.dcm", ("pillow", "gdcm")),
        ("J2K_pixelrep_mismatch.dcm", ("gdcm",)),
        ("examples_jpeg2k.dcm", ("pillow", "gdcm")),
        ("MR_small_jpeg_ls_lossless.dcm", ("gdcm",)),
        ("JPEGLSNearLossless_08.dcm", ("gdcm",)),
        ("SC_rgb_jls_lossy_line.dcm", ("gdcm",)),
        ("MR_small_RLE.dcm", ("pydicom",)),
        ("SC_rgb_rle_16bit_2frame.dcm", ("pydicom",)),
        ("SC_rgb_rle_32bit.dcm", ("pydicom",)),
        ("SC_rgb_jpeg_dcmtk.dcm", ("gdcm",)),
        ("SC_rgb_jpeg_lossy_gdcm.dcm", ("gdcm",)),
    ],
)
def test_decoders_agree_with_others(name, others):
    path = BUNDLED / name
    data = pydicom.dcmread(path)
    _, pixels = loaded(path)
    mine = plugin(data.file_meta.TransferSyntaxUID)
    assert mine in get_decoder(data.file_meta.TransferSyntaxUID).available_plugins
    lossy = data.file_meta.TransferSyntaxUID == uid.JPEGBaseline8Bit
    for other in others:
        assert other != mine
        wanted = pixel_array(path, decoding_plugin=other)
        wanted = np.moveaxis(wanted, -1, 0) if pixels.values.shape[0] == 3 else wanted
        wanted = apply_modality_lut(wanted, data) if pixels.values.shape[0] == 1 else wanted
        valid = np.ones(pixels.values.shape[1:], bool) if pixels.valid is None else pixels.valid
        mine_, theirs = pixels.values[:, valid], wanted.reshape(pixels.values.shape)[:, valid]
        np.testing.assert_allclose(mine_, theirs, atol=3 if lossy else 0)  # inverse DCTs may differ by a step


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("syntax", [uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.RLELossless])
@pytest.mark.parametrize("shape", [(40, 36), (4, 40, 36), (40, 36, 3)])
def test_what_is_encoded_without_loss_is_decoded_to_the_same(tmp_path, syntax, dtype, shape):
    high = 256 if dtype == "uint8" else 4096
    stored = (np.cumsum(noise(*shape, high=9), axis=0) * 11 % high).astype(dtype)
    data = image(stored, Modality="OT", BitsStored=8 if dtype == "uint8" else 12)
    data.compress(syntax, encoding_plugin="pydicom" if syntax == uid.RLELossless else "")
    data.save_as(tmp_path / "a.dcm")
    found, pixels = loaded(tmp_path / "a.dcm")
    np.testing.assert_array_equal(pixels.values, np.moveaxis(stored, -1, 0) if shape[-1] == 3 else stored[None])
    if len(found.shape) == 4:
        _, part = loaded(tmp_path / "a.dcm", (slice(2, 4), slice(1, 5), slice(0, 7)))
        np.testing.assert_array_equal(part.values[0], stored[2:4, 1:5, :7])


def test_jpeg_of_grey_films_is_what_pillow_decodes(tmp_path):
    stored = (np.mgrid[0:3, 0:16, 0:16].sum(0) * 6).astype("uint8")
    frames = []
    for frame in stored:
        file = io.BytesIO()
        Pillow.fromarray(frame).save(file, "JPEG", quality=90)
        frames.append(file.getvalue())
    data = compressed(image(stored, Modality="US"), uid.JPEGBaseline8Bit, frames)
    _, pixels = of(data, tmp_path)
    wanted = [np.asarray(Pillow.open(io.BytesIO(frame))) for frame in frames]
    np.testing.assert_array_equal(pixels.values[0], wanted)


def test_twelve_bits_of_jpeg_extended_are_decoded_quietly(capfd):
    found, pixels = loaded(BUNDLED / "JPGExtended.dcm")
    assert found.shape == (1, 1024, 256)
    # the values that pydicom's own tests give for this file, decoded by other libraries
    assert (pixels.values[0, 420, 140], pixels.values[0, 230, 120]) == (244, 95)
    assert capfd.readouterr() == ("", "")


def test_each_transfer_syntax_has_one_plug_in_and_none_is_gpl():
    assert plugin(uid.ExplicitVRLittleEndian) == plugin(uid.DeflatedExplicitVRLittleEndian) == ""
    assert plugin(uid.JPEGBaseline8Bit) == "pillow"
    assert {plugin(each) for each in (uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)} == {"gdcm"}
    assert {plugin(each) for each in (uid.JPEGLSLossless, uid.JPEGLSNearLossless)} == {"pyjpegls"}
    assert {plugin(each) for each in (uid.JPEG2000, uid.HTJ2K, uid.HTJ2KLossless, uid.RLELossless)} == {"pylibjpeg"}
    assert plugin(uid.MPEG2MPML) is None
    assert plugin("nonsense") is None


def test_many_threads_may_load_at_once(tmp_path):
    names = ("MR_small_RLE.dcm", "693_J2KI.dcm", "SC_rgb_jpeg_gdcm.dcm", "JPEGLSNearLossless_16.dcm", "CT_small.dcm")
    single = {name: loaded(BUNDLED / name)[1].values for name in names}
    wrong: list[str] = []

    def work() -> None:
        for name in names * 2:
            if not np.array_equal(loaded(BUNDLED / name)[1].values, single[name]):
                wrong.append(name)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_headers_of_jpeg_that_would_end_gdcms_process_are_caught_before_it(tmp_path):
    data = pydicom.dcmread(BUNDLED / "SC_rgb_jpeg_gdcm.dcm")
    [frame] = generate_frames(data.PixelData, number_of_frames=1)
    frame_header = frame.index(b"\xff\xc3")
    scan = frame.index(b"\xff\xda")
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
    damaged = {
        "adobe": frame[:2] + adobe + b"\x71" + frame[2:],
        "rows": frame[: frame_header + 6] + b"\x01" + frame[frame_header + 7 :],
        "depth": frame[: frame_header + 4] + b"\x0d" + frame[frame_header + 5 :],
        "subsampling": frame[: frame_header + 11] + b"\x22" + frame[frame_header + 12 :],
        "process": frame.replace(b"\xff\xc3", b"\xff\xc9", 1),
        "samples": frame[: scan + 4] + b"\x09" + frame[scan + 5 :],
        "length": frame[: frame_header + 2] + b"\xff\xff" + frame[frame_header + 4 :],
        "marker": frame[:2] + b"\xff\xb0\x00\x04\x00\x00" + frame[2:],
        "no marker": frame[:2] + b"junk" + frame[2:],
        "beginning": b"junk" + frame,
    }
    for bytes_ in damaged.values():
        data.PixelData = encapsulate([bytes_])
        data["PixelData"].is_undefined_length = True
        data.save_as(tmp_path / "a.dcm")
        with pytest.raises(Unreadable, match="frame 1 cannot be decoded"):
            loaded(tmp_path / "a.dcm")
    harmless = frame[:2] + b"\xff\xfe\x00\x06note" + adobe + b"\x00\xff" + frame[2:]
    data.PixelData = encapsulate([harmless])
    data["PixelData"].is_undefined_length = True
    data.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(
        loaded(tmp_path / "a.dcm")[1].values, loaded(BUNDLED / "SC_rgb_jpeg_gdcm.dcm")[1].values
    )


def test_frames_in_several_fragments_are_found_by_the_offset_table(tmp_path):
    stored = (np.cumsum(noise(3, 40, 36, high=9), axis=1) * 11 % 4096).astype("uint16")
    data = image(stored, Modality="OT", BitsStored=12)
    data.compress(uid.JPEG2000Lossless)
    frames = list(generate_frames(data.PixelData, number_of_frames=3))
    data.PixelData = encapsulate(frames, fragments_per_frame=2, has_bot=True)
    data["PixelData"].is_undefined_length = True
    data.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(loaded(tmp_path / "a.dcm")[1].values[0], stored)
    data.NumberOfFrames = 9
    data.save_as(tmp_path / "a.dcm")
    assert describe(str(tmp_path), "a.dcm").reason == "truncated: 6 of its 9 frames are there"


def with_palette(stored: np.ndarray, entries: np.ndarray, order: str, **elements: Any) -> Dataset:
    data = image(stored, PhotometricInterpretation="PALETTE COLOR", Modality="US", **elements)
    for name, column in zip(("Red", "Green", "Blue"), entries.T, strict=True):
        setattr(data, f"{name}PaletteColorLookupTableDescriptor", [len(entries) % 65536, 0, 16])
        setattr(data, f"{name}PaletteColorLookupTableData", column.astype(order).tobytes())
    return data


def test_palettes_of_all_sixteen_bits_stay_so_and_byte_order_and_length_do_not_matter(tmp_path):
    entries = np.random.default_rng(2).integers(0, 65536, (300, 3))
    stored = noise(8, 6, high=400)
    found, pixels = of(with_palette(stored, entries, "<u2"), tmp_path)
    assert (found.dtype, found.unit) == ("uint16", "value")
    wanted = np.moveaxis(entries[np.minimum(stored, 299)], -1, 0)
    np.testing.assert_array_equal(pixels.values, wanted)
    data = with_palette(stored, entries, ">u2")
    data.PixelData = stored.astype(">u2").tobytes()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    data.save_as(tmp_path / "big.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(loaded(tmp_path / "big.dcm")[1].values, wanted)
    found, pixels = of(with_palette(stored, entries % 256, "u1"), tmp_path)
    assert found.dtype == "uint8"
    np.testing.assert_array_equal(pixels.values, wanted % 256)


def test_segmented_palettes_are_expanded(tmp_path):
    data = image(noise(8, 6, high=256, dtype="uint8"), PhotometricInterpretation="PALETTE COLOR", Modality="US")
    for name in ("Red", "Green", "Blue"):
        setattr(data, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        ramp = np.array([0, 1, 0, 1, 255, 65280], "<u2")  # one entry of 0, then a line to 65280
        setattr(data, f"Segmented{name}PaletteColorLookupTableData", ramp.tobytes())
    found, pixels = of(data, tmp_path)
    np.testing.assert_array_equal(pixels.values, np.repeat(pixels.values[:1], 3, axis=0))
    np.testing.assert_array_equal(pixels.values[0], pydicom.dcmread(tmp_path / "a.dcm").pixel_array)
    assert found.dtype == "uint8"


def test_broken_tables_are_reasons(tmp_path):
    stored = noise(8, 6, high=200, dtype="uint8")
    entries = np.zeros((256, 3), int)
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [100, 0, 16])
    table.add_new("LUTData", "US", [1, 2, 3])
    for data in (
        with_palette(stored, entries, "<u2", RedPaletteColorLookupTableData=None).copy(),
        image(stored, PhotometricInterpretation="PALETTE COLOR"),
        image(stored, ModalityLUTSequence=Items([table])),
        image(stored, ModalityLUTSequence=Items([Dataset()])),
    ):
        data.pop("RedPaletteColorLookupTableData", None)
        described = describe(str(tmp_path), save(data, tmp_path / "a.dcm").name)
        assert "broken" in described.reason


def test_double_floats_become_single_ones(tmp_path):
    data = image(PIXELS, PixelData=None, BitsAllocated=64, BitsStored=None, Modality="OT")
    values = np.random.default_rng(0).normal(size=(8, 6))
    data.DoubleFloatPixelData = values.tobytes()
    found, pixels = of(data, tmp_path)
    assert found.dtype == "float32"
    np.testing.assert_array_equal(pixels.values[0], values.astype(np.float32))


def test_white_is_low_does_not_turn_hounsfield_units_over(tmp_path):
    elements = {"BitsStored": 12, "RescaleSlope": 1, "RescaleIntercept": -1024}
    _, pixels = of(image(PIXELS, PhotometricInterpretation="MONOCHROME1", **elements), tmp_path)
    np.testing.assert_array_equal(pixels.values[0], PIXELS.astype(int) - 1024)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_forked_while_threads_decode_go_on_decoding_and_keep_their_terminal():
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            loaded(BUNDLED / "MR_small_RLE.dcm")

    here = os.fstat(2).st_ino  # before the threads point it elsewhere for moments
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if not child:
                loaded(BUNDLED / "MR_small_RLE.dcm")
                os._exit(0 if os.fstat(2).st_ino == here else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_hounsfield_units_are_int16_and_what_cannot_be_one_is_invalid(tmp_path):
    """Sixteen stored bits and an intercept could express less than -32,768: a filling that no header tells of."""
    stored = noise(4, 8, 6, low=0, high=3000, dtype="int16")
    stored[:, :2] = -32768
    for number, plane in enumerate(stored):
        save(placed(plane, 2.0 * number, BitsStored=16), tmp_path / f"{number}.dcm")
    (found,) = assemble((describe(str(tmp_path), f"{n}.dcm") for n in range(4)), geometry="strict")
    assert (found.dtype, found.unit) == ("int16", "HU")
    files = tuple(str(tmp_path / path) for path in found.paths)
    pixels = load(files, found.key, found.shape, found.dtype, None)
    assert not pixels.valid[:, :2].any()
    assert pixels.valid[:, 2:].all()
    np.testing.assert_array_equal(pixels.values[0, :, 2:], stored[:, 2:].astype(int) - 1024)
