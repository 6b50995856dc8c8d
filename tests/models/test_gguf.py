from __future__ import annotations

import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from gguf_files import write_gguf

from atom.errors import ModelError
from atom.models.gguf import QUANT_TYPES, GGUFFile, dequantize

ROWS, COLUMNS = 5, 512


def quantised(qtype: Q, rng: np.random.Generator) -> np.ndarray:
    """Bytes of random values. The package cannot quantise to K-quants: there, random blocks with
    sane scales (bytes of float16 values below 1)."""
    values = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    if qtype == Q.F32:
        return values
    if qtype == Q.F16:
        return values.astype(np.float16)
    try:
        return gguf.quants.quantize(values, qtype)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[qtype]
        blocks = rng.integers(0, 0x3B, (ROWS, COLUMNS // block * size), dtype=np.uint8)
        return blocks


@pytest.fixture
def every_type(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    tensors = {f"t.{t.name}": (quantised(Q[t.name], rng), Q[t.name]) for t in QUANT_TYPES.values()}
    metadata = {
        "a.int": 7,
        "a.float": 0.5,
        "a.flag": True,
        "a.text": "häß",
        "a.strings": ["", "one", "日本"],
        "a.ints": [1, -2, 3],
        "a.floats": [0.5, -1.5],
        "a.flags": [True, False],
    }
    return write_gguf(tmp_path / "all.gguf", metadata, tensors)


def test_metadata_is_what_the_package_reads(every_type: Path) -> None:
    ours = GGUFFile(every_type).metadata
    theirs = {
        name: field.contents()
        for name, field in gguf.GGUFReader(every_type).fields.items()
        if not name.startswith("GGUF.")
    }
    assert ours == theirs
    assert ours["a.strings"] == ["", "one", "日本"]
    assert ours["a.flags"] == [True, False]


def test_tensors_are_what_the_package_reads(every_type: Path) -> None:
    ours = GGUFFile(every_type).tensors
    theirs = {t.name: t for t in gguf.GGUFReader(every_type).tensors}
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        other = theirs[name]
        assert tensor.shape == tuple(int(n) for n in reversed(other.shape)) == (ROWS, COLUMNS)
        assert tensor.qtype == other.tensor_type.name
        np.testing.assert_array_equal(tensor.data, other.data.view(np.uint8).reshape(ROWS, -1))
        values = dequantize(tensor)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        expected = gguf.quants.dequantize(other.data, other.tensor_type)
        np.testing.assert_array_equal(values, expected)


def test_values_survive_quantisation(every_type: Path) -> None:
    """Independent of the package's dequantiser: the error is within each type's step."""
    tensors = GGUFFile(every_type).tensors
    exact = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    np.testing.assert_array_equal(dequantize(tensors["t.F32"]), exact)
    rng = np.random.default_rng(0)
    for quant in QUANT_TYPES.values():
        values = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
        if quant.name.endswith("_K"):
            rng.integers(0, 0x3B, (ROWS, COLUMNS // 256 * quant.block_bytes), dtype=np.uint8)
            continue
        limit = {"F32": 0, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 2e-2}.get(quant.name, 0.5)
        assert np.abs(dequantize(tensors[f"t.{quant.name}"]) - values).max() <= limit, quant.name


def test_dequantising_in_pieces_changes_nothing(
    every_type: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = GGUFFile(every_type)["t.Q4_1"]
    whole = dequantize(tensor)
    monkeypatch.setattr("atom.models.gguf.DEQUANTISE_ROWS_BYTES", 2 * 4 * COLUMNS)
    np.testing.assert_array_equal(dequantize(tensor), whole)


def test_three_dimensions(tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((3, 4, 64)).astype(np.float32)
    path = write_gguf(tmp_path / "e.gguf", {}, {"experts": (gguf.quantize(values, Q.Q8_0), Q.Q8_0)})
    tensor = GGUFFile(path)["experts"]
    assert tensor.shape == (3, 4, 64)
    assert tensor.data.shape == (3, 4, 64 // 32 * 34)
    assert np.abs(dequantize(tensor) - values).max() < 0.05


def test_data_is_mapped_and_read_only(every_type: Path) -> None:
    data = GGUFFile(every_type)["t.Q8_0"].data
    assert not data.flags.writeable
    assert not data.flags.owndata


def test_embedded_model(embedded_gguf: Path) -> None:
    file = GGUFFile(embedded_gguf)
    assert len(file.tensors) == 272
    assert sum(np.prod(t.shape) for t in file.tensors.values()) == 134_515_008
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 49152
    assert len(file.metadata["tokenizer.ggml.merges"]) == 48900
    kinds = [t.qtype for t in file.tensors.values()]
    assert {k: kinds.count(k) for k in set(kinds)} == {"Q4_1": 210, "Q8_0": 1, "F32": 61}


def test_missing_tensor_is_named(every_type: Path) -> None:
    with pytest.raises(ModelError, match=r"no tensor nothing\.weight"):
        GGUFFile(every_type)["nothing.weight"]


# Damage


@pytest.fixture
def small(tmp_path: Path) -> bytes:
    values = np.ones((2, 32), np.float32)
    path = write_gguf(
        tmp_path / "small.gguf",
        {"a.text": "abc", "a.strings": ["x", "yz"], "a.ints": [1, 2, 3], "a.number": 5},
        {"f": (values, Q.F32), "q": (gguf.quantize(values, Q.Q4_1), Q.Q4_1)},
    )
    return path.read_bytes()


def read(tmp_path: Path, data: bytes) -> GGUFFile:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    return GGUFFile(path)


def test_every_truncation_is_one_clear_line(small: bytes, tmp_path: Path) -> None:
    assert len(read(tmp_path, small).tensors) == 2
    end = len(small) - 32  # the writer pads the end
    for length in range(end):
        with pytest.raises(ModelError) as caught:
            read(tmp_path, small[:length])
        assert "\n" not in str(caught.value)
        assert "damaged.gguf" in str(caught.value)


@pytest.mark.parametrize("seed", range(20))
def test_random_damage_never_escapes(small: bytes, tmp_path: Path, seed: int) -> None:
    """Whatever is written over the file: it is read, or refused with a `ModelError`."""
    rng = random.Random(seed)
    refused = 0
    for _ in range(150):
        data = bytearray(small)
        for _ in range(rng.randint(1, 4)):
            where = rng.randrange(4, len(data) - 8)
            kind = rng.randrange(3)
            if kind == 0:
                data[where] = rng.randrange(256)
            elif kind == 1:
                extreme = rng.choice((2**64 - 1, 2**63, 2**32, 2**40, 0, 2**62 + 1))
                data[where : where + 8] = struct.pack("<Q", extreme)
            else:
                data[where : where + 4] = struct.pack(
                    "<I", rng.choice((0, 9, 13, 2**31, 2**32 - 1))
                )
        try:
            for tensor in read(tmp_path, bytes(data)).tensors.values():
                with np.errstate(all="ignore"):
                    assert dequantize(tensor).shape == tensor.shape
        except ModelError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017
    assert refused > 20


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b"GGUF\x03", b"GGUX\x03", "not a GGUF file"),
        (b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03", "version 50331648"),
        (b"\x06\0\0\0\0\0\0\0a.ints", b"\x06\0\0\0\0\0\0\0a.text", "'a.text' twice"),
        (b"\x01\0\0\0\0\0\0\0q", b"\x01\0\0\0\0\0\0\0f", "'f' twice"),
        (b"abc", b"\xff\xfe\xfd", "not UTF-8"),
        (b"yz", b"\xff\xfe", "entry 1 of metadata 'a.strings' is not UTF-8"),
    ],
)
def test_particular_damage(small: bytes, tmp_path: Path, old: bytes, new: bytes, says: str) -> None:
    assert small.count(old) == 1
    with pytest.raises(ModelError, match=says):
        read(tmp_path, small.replace(old, new, 1))


def test_unsupported_type_is_named(tmp_path: Path) -> None:
    data = np.zeros((2, 18), np.uint8)
    path = write_gguf(tmp_path / "iq.gguf", {}, {"w": (data, Q.IQ4_NL)})
    with pytest.raises(ModelError, match="unsupported GGML type 20"):
        GGUFFile(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(ModelError, match="cannot read"):
            GGUFFile(path)
