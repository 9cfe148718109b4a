"""Nothing personal leaks: studies full of markers go through every command, and every byte written is searched."""

import contextlib
import gzip
import io
import json
import logging
import os
import signal
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pydicom
import pytest
from leaks import (
    END,
    FORM,
    HEADER,
    HEADER_ACCENTED,
    KNOWN,
    NAME,
    NAME_ACCENTED,
    NUMBER,
    PIXELS,
    TECHNICAL,
    TEXTS,
    TIME,
    YEAR,
    body,
    item,
    leaks,
    studies,
    technical,
    whole,
    written,
)
from nibabel.nifti1 import Nifti1Extension
from PIL import Image, PngImagePlugin
from pydicom import uid
from pydicom.datadict import DicomDictionary
from pydicom.encaps import encapsulate
from test_volumes import CUBED, SLICED

from maectl.adapter import Files, Reject, Source
from maectl.embed import embed
from maectl.errors import DataError
from maectl.inspection import inspect, report
from maectl.pretrain import Request, pretrain
from maectl.probe import probe
from maectl.reconstruct import reconstruct
from maectl.registry import load
from maectl.stepping import Stepper

# ---- every command --------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What was given, what was written, what was said and returned."""

    folders: dict[str, Path]
    out: Path
    said: str
    results: list[Any]
    found: list[Source | Reject]

    @property
    def files(self) -> dict[Path, bytes]:
        return written(self.out)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folders = studies(tmp_path_factory.mktemp("given") / f"{NAME}-root")
    out = tmp_path_factory.mktemp("written")
    results: list[Any] = []
    with pytest.MonkeyPatch.context() as patch, overheard() as said:
        (out / "temporary").mkdir()
        patch.setattr(tempfile, "tempdir", str(out / "temporary"))
        for name, recipe, more in (("dicom", "ct-slices", ["data.options.export=nifti"]), ("nifti", "mri-slices", [])):
            results += commands(folders[name], folders["strays"], out / f"{name}-slices", recipe, SLICED)
            results += commands(folders[name], folders["strays"], out / f"{name}-cubes", recipe, [*CUBED, *more])
            results.append(inspect([str(folders[name])], adapter=None, workers=1))
            print(report(results[-1]))
    adapter = load("medical")()
    found = [each for folder in folders.values() for each in adapter.scan(Files(folder))]
    return Outcome(folders, out, said.getvalue(), results, found)


def commands(folder: Path, strays: Path, run: Path, recipe: str, overrides: list[str]) -> Iterator[Any]:
    """Pretrain (in slices: interrupted and resumed), probe and reconstruct; their results."""
    given = [*overrides, "data.max_bad=1"]
    asked = Request([str(folder)], run, recipe=recipe, overrides=given, steps=3, batch_size=8, workers=1)
    if overrides is SLICED:
        with interrupted_at_once(), pytest.raises(KeyboardInterrupt):
            pretrain(asked)
        asked = Request([], run, resume=True, workers=1)
    yield pretrain(asked)
    how = {"labels": None, "method": "knn", "pool": "cls", "seed": 0, "workers": 1}
    yield probe(run, str(folder), out=run.with_name(f"{run.name}-probe.json"), **how)
    some = [folder / "down" / f"sub-{NAME}{number}" for number in (1, 3)] if overrides is SLICED else [folder / "down"]
    paths = [*some, *sorted((folder / "across").glob(f"{NAME}*")), strays]
    out = run.with_name(f"{run.name}-pictures")
    yield reconstruct(run, [str(path) for path in paths], out, mask_ratio=None, seed=0, cover=False, format="both")
    how = {"dtype": None, "pca": 3 if overrides is SLICED else None, "pool": "mean", "labels": None, "seed": 0}
    yield embed(run, [str(folder)], run.with_name(f"{run.name}-embeddings"), workers=1, **how)


@contextlib.contextmanager
def interrupted_at_once() -> Iterator[None]:
    """Ctrl-C's signal in the first step, after which a checkpoint is written."""
    step = Stepper.__call__

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "__call__", interrupted)
        yield


@contextlib.contextmanager
def overheard() -> Iterator[io.StringIO]:
    """All that is printed, by C code too, and all log records."""
    said, records = io.StringIO(), logging.StreamHandler(io.StringIO())
    saved = os.dup(1), os.dup(2)
    logging.getLogger().addHandler(records)
    with tempfile.TemporaryFile() as low:
        try:
            os.dup2(low.fileno(), 1)
            os.dup2(low.fileno(), 2)
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                yield said
        finally:
            for number, old in zip((1, 2), saved, strict=True):
                os.dup2(old, number)
                os.close(old)
            logging.getLogger().removeHandler(records)
            low.seek(0)
            said.write(low.read().decode("utf-8", "replace") + records.stream.getvalue())


def test_every_planted_file_reads_and_holds_what_it_should(planted: Outcome):
    path = sorted((planted.folders["dicom"] / "down").rglob("*.dcm"))[0]
    read = pydicom.dcmread(path)
    assert len(read) > 2400
    assert HEADER_ACCENTED in str(read.PatientName)
    assert str(read.SOPInstanceUID).startswith(f"2.25.{NUMBER}")
    assert read.PatientBirthDate.startswith(YEAR)
    texts = {tag for tag, (vr, *_) in DicomDictionary.items() if vr in TEXTS and tag >> 16 > 2}
    assert {tag for tag in texts if tag not in read} <= TECHNICAL
    for each in (*planted.folders["dicom"].rglob("sub-*/*-0.dcm"), *planted.folders["nifti"].rglob("sub-*/*.nii*")):
        assert leaks(each.read_bytes())["header"], each


def test_the_damaged_files_reach_the_reasons_and_notes_that_might_quote_them(planted: Outcome):
    told = [each.reason if isinstance(each, Reject) else ";".join(each.notes) for each in planted.found]
    told += [data.decode() for path, data in planted.files.items() if path.name == "quarantine.csv"]
    for phrase in ("number of frames", "colour space", "an unknown one", "mosaic", "structured report", "cut short",
                   "cannot be decoded (RLE", "cannot be decoded (JPEG", "told apart by stack", "a gap of 1 slice",
                   "none of the volumes here", "dimensions", "data type", "in spite of its suffix",
                   "checksum"):  # fmt: skip
        assert any(phrase in each for each in told), phrase


MAPPINGS = ("index.arrow", "quarantine.csv", "index.csv")


@pytest.mark.parametrize("name", ["dicom-slices", "dicom-cubes", "nifti-slices", "nifti-cubes"])
def test_only_index_quarantine_and_folders_hold_paths_and_nothing_holds_header_text(planted: Outcome, name: str):
    """Of a run, its probe and its pictures; the names of files and folders written count as bytes."""
    files = {path: data for path, data in planted.files.items() if path.parts[0].startswith(name)}
    assert {*MAPPINGS, "run.json"} <= {path.name for path in files}
    found: list[str] = []
    for path, data in files.items():
        if path.name == "run.json":
            about = json.loads(data)
            folders, data = leaks(json.dumps(about.pop("folders")).encode()), json.dumps(about).encode()
            assert folders["name"]
            assert not folders["header"]
        inside, outside = leaks(data), leaks(os.fsencode(path))
        found += (f"{path}: {label}" for label in (*inside["header"], *outside["header"], *outside["name"]))
        if path.name in MAPPINGS:
            assert inside["name"], f"{path} was to hold paths: is the search blind?"
        else:
            found += (f"{path}: {label}" for label in inside["name"])
    assert not found


def test_stores_and_temporary_folders_hold_neither(planted: Outcome):
    files = {path: data for path, data in planted.files.items() if path.parts[0] in (".maectl-store", "temporary")}
    assert {path.suffix for path in files} == {".arrow", ".pixels"}
    for path, data in files.items():
        assert leaks(data) == {"header": set(), "name": set()}, path
    assert not list((planted.out / "temporary").glob("maectl*"))


def test_what_is_written_is_known_and_where_it_should_be(planted: Outcome):
    files = planted.files
    kinds = {".tfevents" if "tfevents" in path.name else path.suffix for path in files}
    assert kinds == KNOWN
    places = {path.parts[0] for path in files}
    runs = {f"{name}-{model}" for name in ("dicom", "nifti") for model in ("slices", "cubes")}
    more = {f"{run}{end}" for run in runs for end in ("-probe.json", "-probe.png", "-pictures", "-embeddings")}
    assert places == {".maectl-store", *runs, *more}


def test_what_is_said_and_returned_may_name_files_but_quotes_no_header(planted: Outcome):
    said, returned = planted.said.encode(), json.dumps(planted.results).encode()
    assert leaks(said)["name"]
    assert not leaks(said)["header"]
    assert not leaks(returned)["header"]
    assert "burned into the pixels" in planted.said


def test_a_source_carries_nothing_but_technical_values_and_a_reject_none_of_the_header(planted: Outcome):
    assert sum(isinstance(each, Reject) for each in planted.found) > 30
    for each in planted.found:
        words = [each.reason] if isinstance(each, Reject) else [each.key, *each.facts, *each.notes, each.unit]
        assert leaks("\n".join(words).encode()) == {"header": set(), "name": set()}, words


def test_what_tells_patients_apart_stays_in_memory(planted: Outcome):
    """`Source.group`, which for DICOM is a hash: found by trying names, it would identify them."""
    hashes = {each.group for each in planted.found if isinstance(each, Source) and len(each.group) == 32}
    assert len(hashes) > 8
    for path, data in planted.files.items():
        for each in hashes:
            assert each.encode() not in data, path
            assert bytes.fromhex(each) not in data, path


def test_errors_quote_no_header(planted: Outcome, tmp_path: Path):
    damaged = planted.folders["nifti"] / "across" / f"{NAME}-damaged"
    with pytest.raises(DataError, match="none of the 2 images can be used") as error:
        pretrain(Request([str(damaged)], tmp_path / "run", recipe="mri-slices", overrides=SLICED, steps=1, workers=1))
    assert not leaks(str(error.value).encode())["header"]
    with pytest.raises(DataError) as error:
        reconstruct(planted.out / "dicom-cubes", [str(planted.folders["strays"])], tmp_path / "pictures",
                    mask_ratio=None, seed=0, cover=False, format="both")  # fmt: skip
    assert not leaks(str(error.value).encode())["header"]


# ---- the search itself ----------------------------------------------------------------------------------------


def gzipped(text: str) -> bytes:
    return gzip.compress(b"a first member") + gzip.compress(text.encode()) + b"and a tail"


def zipped(text: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.gz", gzip.compress(text.encode()))
    return packed.getvalue()


def png(text: str, kind: str = "", pixels: bytes = bytes(64)) -> bytes:
    about, packed = PngImagePlugin.PngInfo(), io.BytesIO()
    if kind == "iTXt":
        about.add_itxt("Comment", text, zip=True)
    elif kind:
        about.add_text("Comment", text, zip=kind == "zTXt")
    Image.frombytes("L", (64, len(pixels) // 64), pixels).save(packed, "PNG", pnginfo=about)
    return packed.getvalue()


def drawn(text: str) -> bytes:
    """A marker in the values of pixels, which PNG filters and deflates."""
    noise = np.random.default_rng(0).integers(0, 256, 64 * 20, np.uint8).tobytes()
    return png("", pixels=noise[:640] + text.encode("latin-1").ljust(64) + noise[640:])


def arrow(text: str, where: str = "values") -> bytes:
    table = pa.table({"paths": pa.array([[text.encode() * 9]], pa.large_list(pa.large_binary())), "number": [1]})
    if where == "schema":
        table = table.slice(0, 0).replace_schema_metadata({"maectl": json.dumps({"folders": [text]})})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def weights(text: str) -> bytes:
    from safetensors.numpy import save

    return save({"weight": np.zeros(3, np.float32)}, {"config": json.dumps({"names": [text]})})


def board(text: str, picture: bool = False) -> bytes:
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)
        if picture:
            pixels = np.frombuffer(text.encode("latin-1").ljust(48), np.uint8).reshape(1, 16, 3).repeat(4, axis=0)
            writer.add_image("pictures", pixels, 1, dataformats="HWC")
        else:
            writer.add_text("notes", text)
        writer.close()
        return b"".join(path.read_bytes() for path in Path(folder).iterdir())


def tagged(text: str, where: str, syntax: str = uid.ExplicitVRLittleEndian) -> bytes:
    """A DICOM file with a marker in one place alone."""
    elements = technical(body(0, True)[0], 0.0, "utf-8")
    if where == "tag":
        elements[0x00100010] = ("PN", text.encode())
    elif where == "nested":
        inner = {0x00081115: ("SQ", item({0x00100010: ("PN", text.encode())}))}
        elements[0x00101002] = ("SQ", item(inner))
    elif where == "private":
        elements |= {0x00090010: ("LO", b"SOMEONE"), 0x00091001: ("UN", text.encode("utf-16-be"))}
    elif where == "fragment":
        elements[PIXELS] = ("OB", encapsulate([text.encode()]) + END)
    elif where == "pixels":
        plain = np.frombuffer(text.encode("latin-1").ljust(2048), "<u2").reshape(32, 32)
        elements |= {0x00280101: ("US", b"\x10\0"), 0x00280102: ("US", b"\x0f\0")}
        coder = pydicom.pixels.encoders.JPEG2000LosslessEncoder
        frame = coder.encode(plain, **{**FORM, "bits_stored": 16})
        elements[PIXELS] = ("OB", encapsulate([frame]) + END)
    return whole(elements, syntax, plain=True)


def described(text: str, field: str = "", version: int = 1) -> bytes:
    """A packed NIfTI file with a marker in a field or, without one, in an extension."""
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    image = kind(np.zeros((2, 2, 2), np.int16), np.eye(4))
    if field:
        image.header[field] = text.encode()
    else:
        image.header.extensions.append(Nifti1Extension("comment", text.encode()))
    return gzip.compress(image.to_bytes())


def parquet(columns: dict[str, list[Any]]) -> bytes:
    """A table, compressed."""
    packed = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), packed, compression="zstd")
    return packed.getvalue()


HIDDEN: dict[str, Callable[[str], bytes]] = {
    "UTF-8": str.encode,
    "Latin-1": lambda text: text.encode("latin-1"),
    "UTF-16 LE": lambda text: b"x" + text.encode("utf-16-le"),
    "UTF-16 BE": lambda text: text.encode("utf-16-be"),
    "small letters": lambda text: text.lower().encode(),
    ".json": lambda text: json.dumps({"a": text}).encode(),
    ".json in .json": lambda text: json.dumps({"a": json.dumps(text)}).encode(),
    "repr": lambda text: ascii(text).encode(),
    "Latin-1 file name in .json": lambda text: json.dumps(os.fsdecode(text.encode("latin-1"))).encode(),
    ".jsonl": lambda text: b'{"step": 1}\n' + json.dumps({"a": text}).encode() + b"\n",
    ".csv": lambda text: f"1,scan,{text}\r\n".encode(),
    ".yaml": lambda text: f"a: {text}\n".encode(),
    ".gz": gzipped,
    "zip": zipped,
    ".png tEXt": lambda text: png(text, "tEXt"),
    ".png zTXt": lambda text: png(text, "zTXt"),
    ".png iTXt": lambda text: png(text, "iTXt"),
    ".png IDAT": drawn,
    ".arrow values": arrow,
    ".arrow schema": lambda text: arrow(text, "schema"),
    ".parquet values": lambda text: parquet({"a": [text] * 9}),
    ".parquet schema": lambda text: parquet({text: [1]}),
    ".safetensors": weights,
    ".dcm tag": lambda text: tagged(text, "tag"),
    ".dcm nested": lambda text: tagged(text, "nested"),
    ".dcm private": lambda text: tagged(text, "private"),
    ".dcm deflated": lambda text: tagged(text, "nested", uid.DeflatedExplicitVRLittleEndian),
    ".dcm fragment": lambda text: tagged(text, "fragment", uid.JPEG2000Lossless),
    ".dcm pixels": lambda text: tagged(text, "pixels", uid.JPEG2000Lossless),
    ".nii extension": described,
    ".nii descrip": lambda text: described(text, "descrip"),
    ".nii aux_file": lambda text: described(text, "aux_file", 2),
    ".pixels": lambda text: bytes(99) + text.encode() + bytes(99),
    ".tfevents text": board,
    ".tfevents picture": lambda text: board(text, picture=True),
    ".tfevents picture's text": lambda text: b"record" + png(text, "zTXt") + b"crc",
}


@pytest.mark.parametrize("container", HIDDEN)
@pytest.mark.parametrize(("kind", "text"), [
    ("header", HEADER), ("header", HEADER_ACCENTED), ("header", f"2.25.{NUMBER}12"), ("header", f"{TIME}12"),
    ("header", f"{YEAR}0731"), ("header", f"{YEAR}-07-31"), ("name", NAME), ("name", NAME_ACCENTED),
])  # fmt: skip
def test_a_marker_is_found_wherever_it_is_hidden(container: str, kind: str, text: str):
    found = leaks(HIDDEN[container](f"some {text} text"))
    assert found[kind]
    assert not found["name" if kind == "header" else "header"]


def test_what_is_no_marker_is_not_found():
    rng = np.random.default_rng(0)
    numbers = json.dumps([*rng.random(9999).tolist(), 0.18420731, 118420731, 1842.0731, 83174629])
    packed = gzip.compress(numbers.encode())
    for data in (rng.bytes(1 << 21), numbers.encode(), packed, drawn("nobody"), tagged("", "tag")):
        assert leaks(data) == {"header": set(), "name": set()}


def test_every_kind_of_file_has_a_control():
    assert {container.split()[0] for container in HIDDEN if container.startswith(".")} == KNOWN
