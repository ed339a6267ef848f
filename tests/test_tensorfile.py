"""Files written as a stream are byte for byte safetensors' own, and are read one tensor at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradstep import disk, tensorfile
from gradstep.errors import CheckpointError, ModelError

FAST = settings(max_examples=60, deadline=None)
KINDS = sorted(tensorfile._LAYOUT)


def raw(kind: str, shape: list[int], seed: int) -> Tensor:
    """A tensor of any type, of bytes that are nothing to it but bytes."""
    dtype = getattr(torch, kind)
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel()
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    content = torch.randint(0, 256, (count * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    return content.view(dtype).reshape(shape)


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def content(tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> bytes:
    size, pieces = tensorfile.parts(tensors, header)
    whole = b"".join(pieces)
    assert len(whole) == size
    return whole


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
shapes = st.lists(st.integers(0, 4), max_size=3)
tensors = st.dictionaries(names, st.tuples(st.sampled_from(KINDS), shapes, st.integers(0, 99)), max_size=6)


def made(drawn: dict[str, Any]) -> dict[str, Tensor]:
    whole = {name: given for name, given in drawn.items() if given[0] != "float4_e2m1fn_x2" or given[1]}
    return {name: raw(*given) for name, given in whole.items()}


@FAST
@given(tensors, st.none() | st.dictionaries(names, names, min_size=1, max_size=1))
def test_the_bytes_are_safetensors_own(drawn: dict[str, Any], header: dict[str, str] | None) -> None:
    given = made(drawn)
    assert content(given, header) == safetensors.torch.save(given, metadata=header)


def test_every_type_is_written_as_safetensors_writes_it_and_comes_back(tmp_path: Path) -> None:
    given = {kind: raw(kind, [3, 4], 1) for kind in KINDS}
    assert content(given) == safetensors.torch.save(given)
    (tmp_path / "file").write_bytes(content(given))
    found = tensorfile.opened(tmp_path / "file")
    assert set(found) == set(given)
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert bits(found[name]) == bits(tensor)


@FAST
@given(tensors)
def test_what_is_written_comes_back(tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, Any]) -> None:
    given = made(drawn)
    path = tmp_path_factory.mktemp("round") / "file"
    size, pieces = tensorfile.parts(given)
    assert disk.write_new(path, pieces, size)[0] == size
    found = tensorfile.opened(path)
    assert found.keys() == given.keys()
    assert all(bits(found[name]) == bits(given[name]) and found[name].shape == given[name].shape for name in given)
    assert all(found[name].dtype == given[name].dtype for name in given)


def test_layouts_shared_memory_and_lazy_signs_are_written_by_value() -> None:
    base = torch.arange(24.0)
    odd = {
        "transposed": base.reshape(4, 6).T,
        "every second": base[::2],
        "expanded": base[:1].expand(2, 3),
        "shared": base[3:9],
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "conjugate": torch.view_as_complex(torch.randn(3, 2)).conj(),
        "negative": torch.view_as_complex(torch.randn(3, 2)).conj().imag,
        "trained": torch.nn.Parameter(torch.randn(2, 2)),
    }
    plain = {name: tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
             for name, tensor in odd.items()}  # fmt: skip
    assert content(odd) == safetensors.torch.save(plain)


def test_equal_tensors_make_equal_files_in_whatever_order_they_are_given() -> None:
    one = {"b": torch.ones(2), "a": torch.zeros(3, dtype=torch.int64), "c": torch.ones(1)}
    assert content(one) == content(dict(reversed(one.items())))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, dtype=torch.complex128),
        torch.ones(2, 2).to_sparse(),
        torch.zeros(2, device="meta"),
    ],
    ids=["complex128", "sparse", "meta"],
)
def test_what_the_format_can_t_hold_is_refused_by_name_before_anything_is_written(tensor: Tensor) -> None:
    with pytest.raises(ModelError, match=r"'layer\.odd' can't be saved"):
        tensorfile.parts({"layer.fine": torch.ones(1), "layer.odd": tensor})


def test_a_name_that_the_format_has_for_itself_is_refused() -> None:
    with pytest.raises(ModelError, match="can't be called '__metadata__'"):
        tensorfile.parts({"__metadata__": torch.ones(1)})


def test_tensors_are_taken_one_at_a_time() -> None:
    """The second is not looked at before the first has been written: no second model in memory."""
    first, second = torch.zeros(4), torch.zeros(4)
    _, pieces = tensorfile.parts({"a": first, "b": second})
    next(pieces)
    assert not any(next(pieces))
    second.fill_(1)
    assert any(next(pieces))


def test_a_tensor_that_was_handed_out_outlives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content({"a": torch.arange(100_000.0)}))
    a = tensorfile.opened(path)["a"]
    path.write_bytes(b"")  # a tensor that is mapped would now end the process by SIGBUS
    assert a.sum() == torch.arange(100_000.0).sum()
    a += 1  # and is one's own


def test_it_is_a_mapping_that_loads_what_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content({"a": torch.ones(2), "b": torch.zeros(())}))
    found = tensorfile.opened(tmp_path / "file")
    assert (len(found), set(found), "a" in found, "c" in found) == (2, {"a", "b"}, True, False)
    assert found.get("c") is None
    with pytest.raises(KeyError):
        found["c"]
    assert {name: value.tolist() for name, value in found.items()} == {"a": [1, 1], "b": 0}


def file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


MALICIOUS = {
    "empty": b"",
    "seven bytes": b"1234567",
    "header of 0 bytes": bytes(100),
    "header of 2^63 bytes": file(b"{}", length=2**63),
    "header of 2^64-1 bytes": file(b"{}", length=2**64 - 1),
    "header longer than the file": file(b"{}", length=3),
    "header cut": file(b'{"a":'),
    "no object": file([1, 2]),
    "no JSON": file(b"\x80\x04\x95ab"),
    "no UTF-8": file(b'{"\xff":1}'),
    "a name twice": file(b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 4, [1])).encode(),) * 2), bytes(4)),
    "nested 100,000 deep": file(b"[" * 100_000),
    "an object nested 100,000 deep": file(b'{"a":' * 100_000),
    "overlap": file({"a": entry(0, 8, [2]), "b": entry(4, 8, [1])}, bytes(8)),
    "hole": file({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12)),
    "trailing bytes": file({"a": entry(0, 4, [1])}, bytes(5)),
    "data cut": file({"a": entry(0, 400, [100])}, bytes(4)),
    "10 GB declared": file({"a": entry(0, 10**10, [10**10 // 4])}, bytes(4)),
    "backwards": file({"a": entry(4, 0, [1])}, bytes(4)),
    "shape and bytes differ": file({"a": entry(0, 4, [2])}, bytes(4)),
    "shape that overflows": file({"a": entry(0, 0, [2**40, 2**40])}),
    "negative shape": file({"a": entry(0, 4, [-1])}, bytes(4)),
    "negative offset": file({"a": entry(-4, 0, [1])}, bytes(4)),
    "unknown type": file({"a": entry(0, 4, [1], "OBJECT")}, bytes(4)),
    "entry is a number": file({"a": 3}),
    "metadata of a list": file({"__metadata__": {"a": [1]}}),
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch canary'\ntR.",
}


@pytest.mark.parametrize("case", MALICIOUS)
def test_a_file_that_is_none_is_refused_by_name(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(MALICIOUS[case])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is no safetensors file that can be read"):
        tensorfile.opened(path)


def test_what_opens_and_can_t_be_loaded_is_an_error_of_the_checkpoint_too(tmp_path: Path) -> None:
    """safetensors knows types that torch has not; its reader says so only when the tensor is asked for."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(file({"a": entry(0, 3, [4], "F6_E2M3")}, b"123"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: 'a' can't be read"):
        tensorfile.opened(path)["a"]
    path.write_bytes(file({"a": entry(0, 0, [0, 2**63], "F32")}, b""))  # no elements, and a size that torch can't have
    with pytest.raises(CheckpointError, match=r"model\.safetensors: 'a' can't be read"):
        tensorfile.opened(path)["a"]


@FAST
@given(st.text())
def test_words_of_strangers_are_one_short_printable_line(text: str) -> None:
    shown = tensorfile.cut(text)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) <= 2100


@pytest.mark.parametrize(
    "text", [b'{"a": NaN}', b"[Infinity]", b"[-Infinity]", b'{"a":1,"a":1}', b"[" * 10**5, b"\xff"]
)
def test_json_that_is_none_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        tensorfile.from_json(text)
