"""Compile level 3: what is traced, cut, compiled, kept and found again.

Pieces are interpreted here, which is quick; `test_compile_inductor` really compiles some.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from compiling import CPU, MAX_TOKENS, Interpreter, compiled, interpreter, load_traceable, logits_of
from tiny import FAMILIES, make_tiny, random_prompt, tiny_checkpoint

from atom.engine.compiler import environment
from atom.engine.compiler import store as storing
from atom.engine.compiler.errors import CannotCompile
from atom.engine.compiler.plan import LAYER_OPS, OpCall
from atom.engine.compiler.split import split
from atom.engine.compiler.store import Store
from atom.engine.compiler.structure import Structure, follow
from atom.engine.compiler.trace import trace

__all__ = ["interpreter"]  # a fixture


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def llama() -> Any:
    return load_traceable(tiny_checkpoint("llama3"))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_logits_equal_eager_ones(family: str, interpreter: Interpreter, store: Store) -> None:
    model, ids = load_traceable(tiny_checkpoint(family)), random_prompt(41)
    forward = compiled(model, store).forward
    for chunks in ([41], [23, 1, 1, 9], [1]):
        want = logits_of(model, model.forward, ids, chunks)
        torch.testing.assert_close(logits_of(model, forward, ids, chunks), want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", ["llama3", "qwen3_moe", "mixtral"])
def test_equal_layers_are_compiled_once(
    family: str, interpreter: Interpreter, store: Store, tmp_path: Path
) -> None:
    """Twice the layers are more steps of the very same pieces."""
    sizes = []
    extra = {"mlp_only_layers": []} if family == "qwen3_moe" else {}
    for layers in (3, 6):
        path = make_tiny(family, tmp_path / str(layers), num_hidden_layers=layers, **extra)
        made = compiled(load_traceable(path), store)
        sizes.append((made.num_steps, made.num_pieces))
        assert made.compiled == (made.num_pieces if layers == 3 else 0)
    assert sizes[0][1] == sizes[1][1] == len(interpreter.graphs) <= 5
    assert sizes[1][0] > sizes[0][0] * 1.5


def test_a_second_start_neither_traces_nor_compiles(interpreter: Interpreter, store: Store) -> None:
    path = tiny_checkpoint("qwen3_moe")
    first = compiled(load_traceable(path), store)
    assert first.traced
    assert first.compiled == first.num_pieces == len(interpreter.graphs)
    model, ids = load_traceable(path), random_prompt(30)
    second = compiled(model, store)
    assert not second.traced
    assert second.compiled == 0
    assert len(interpreter.graphs) == first.num_pieces
    assert "trace" not in second.seconds
    want = logits_of(model, model.forward, ids, [17, 1])
    got = logits_of(model, second.forward, ids, [17, 1])
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)


def test_another_model_of_the_same_shapes_uses_other_weights(
    interpreter: Interpreter, store: Store, tmp_path: Path, llama: Any
) -> None:
    compiled(llama, store)
    other = load_traceable(make_tiny("llama3", tmp_path, seed=1))
    made = compiled(other, store)
    assert (made.traced, made.compiled) == (False, 0)
    ids = random_prompt(20)
    got = logits_of(other, made.forward, ids, [20])
    torch.testing.assert_close(got, logits_of(other, other.forward, ids, [20]), rtol=0, atol=2e-5)


@pytest.mark.parametrize("change", ["dtype", "max_tokens", "version", "eps", "settings"])
def test_what_changes_the_code_compiles_again(
    change: str, interpreter: Interpreter, store: Store, tmp_path: Path, llama: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    before = compiled(llama, store)
    model, max_tokens = llama, MAX_TOKENS
    match change:
        case "dtype":
            model = load_traceable(tiny_checkpoint("llama3"), torch.bfloat16)
        case "max_tokens":
            max_tokens *= 2
        case "version":
            monkeypatch.setattr(environment, "__version__", "0.0.0")
        case "eps":
            model = load_traceable(make_tiny("llama3", tmp_path, rms_norm_eps=1e-3))
        case "settings":
            monkeypatch.setattr(torch._inductor.config, "epilogue_fusion", False)
    after = compiled(model, store, max_tokens)
    assert after.traced
    assert after.compiled == before.num_pieces
    again = compiled(model, store, max_tokens)
    assert (again.traced, again.compiled) == (False, 0)


def test_changed_source_traces_again_but_compiles_nothing(
    interpreter: Interpreter, store: Store, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(llama, store)
    real = environment.source_digest
    changed = {environment.TRACED: "another"}
    monkeypatch.setattr(
        environment,
        "source_digest",
        lambda folders=environment.TRACED: changed.get(folders, real(folders)),
    )
    again = compiled(llama, store)
    assert again.traced
    assert again.compiled == 0


def _files(store: Store, pattern: str) -> list[Path]:
    return sorted(store._root.glob(pattern))


@pytest.mark.parametrize(
    ("pattern", "harm"),
    [
        ("plans/*.json", "cut"),
        ("plans/*.json", "flip"),
        ("pieces/*/code.py", "cut"),
        ("pieces/*/code.py", "flip"),
        ("pieces/*/code.py", "delete"),
        ("pieces/*/manifest.json", "cut"),
        ("pieces/*/manifest.json", "delete"),
        ("pieces/*/built/kernel.so", "flip"),
        ("pieces/*/built/kernel.so", "delete"),
    ],
)
def test_a_damaged_file_is_made_again(
    pattern: str, harm: str, interpreter: Interpreter, store: Store, llama: Any,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    commit = storing.PieceFolder.commit

    def build_and_commit(folder: storing.PieceFolder, code: str) -> None:
        (folder.built / "kernel.so").write_bytes(b"machine code")
        commit(folder, code)

    monkeypatch.setattr(storing.PieceFolder, "commit", build_and_commit)
    compiled(llama, store)
    path = _files(store, pattern)[0]
    content = path.read_bytes()
    match harm:
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "flip":
            path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        case "delete":
            path.unlink()
    with caplog.at_level(logging.WARNING, "atom.compiler"):
        mended = compiled(llama, store)
    assert len([r for r in caplog.records if "is damaged" in r.message]) == 1
    assert mended.compiled == (0 if "plans" in pattern else 1)
    assert path.exists()
    again = compiled(llama, store)
    assert (again.traced, again.compiled) == (False, 0)


def test_code_that_does_not_load_is_made_again(
    interpreter: Interpreter, store: Store, llama: Any, caplog: pytest.LogCaptureFixture
) -> None:
    compiled(llama, store)
    lost = interpreter.graphs.pop("piece 1")
    mended = compiled(llama, store)
    assert (mended.traced, mended.compiled) == (True, 1)
    assert "KeyError" in caplog.text
    assert lost is not interpreter.graphs["piece 2"]


def test_a_failure_of_the_compiler_is_a_reason(
    interpreter: Interpreter, store: Store, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> str:
        raise RuntimeError("no ptxas here\nand more")

    from atom.engine.compiler import inductor

    with monkeypatch.context() as patch:
        patch.setattr(inductor, "compile_piece", fail)
        with pytest.raises(CannotCompile, match=r"Inductor failed: RuntimeError: no ptxas here$"):
            compiled(llama, store)
    assert _files(store, "pieces/*/*") == []
    assert compiled(llama, store).compiled == 3


def test_what_a_killed_process_left_is_cleared_away(
    interpreter: Interpreter, store: Store, llama: Any
) -> None:
    compiled(llama, store)
    manifest = _files(store, "pieces/*/manifest.json")[0]
    manifest.unlink()  # it is written last
    (manifest.parent / "built" / "half.o").write_bytes(b"machi")
    assert compiled(llama, store).compiled == 1
    assert manifest.exists()
    assert not (manifest.parent / "built" / "half.o").exists()


def test_the_digest_of_a_structure() -> None:
    """The same in every process and for every set of weights; tensors are found where they hang."""
    one, two = (load_traceable(tiny_checkpoint("qwen3_moe")) for _ in range(2))
    first, second = Structure(one), Structure(two)
    assert first.digest == second.digest
    assert first.opaque.keys() != second.opaque.keys()  # names of layers are the process's
    found = {id(follow(one, path)) for path in first.tensors.values()}
    assert found == set(first.tensors)
    for module in one.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor):
            assert first.path_of(weight) is not None


def test_every_operator_of_a_layer_can_be_called() -> None:
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("atom::")]
    assert sorted(LAYER_OPS) == sorted(names)


def _split(model: Any, forward: Any) -> Any:
    return split(trace(forward, CPU, MAX_TOKENS), Structure(model), "salt")


def test_what_an_operator_overwrites_is_copied_if_it_is_read_again(llama: Any) -> None:
    layer = llama.attention_layers()[0]
    linear = llama.model.layers[0].self_attn.qkv_proj

    def forward(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        qkv = linear(llama.model.embed_tokens(ids))
        heads = qkv.view(-1, 8, 32)
        return layer(heads, positions).view(-1, 128) + qkv[:, :128]

    calls = [s for s in _split(llama, forward).plan.steps if isinstance(s, OpCall)]
    assert [call.copied for call in calls if call.op == "atom::attention"] == [[0]]
    plain = [s for s in _split(llama, llama.forward).plan.steps if isinstance(s, OpCall)]
    assert not any(call.copied for call in plain)


def test_a_view_across_pieces_is_refused(llama: Any) -> None:
    layer = llama.attention_layers()[0]

    def forward(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = llama.model.embed_tokens(ids)
        out = layer(llama.model.layers[0].self_attn.qkv_proj(x).view(-1, 8, 32), positions)
        part = out[:, 1:]  # of what the operator gave, used behind the next one
        again = layer(llama.model.layers[0].self_attn.qkv_proj(x).view(-1, 8, 32), positions)
        return (again[:, 1:] + part).sum(1)

    with pytest.raises(CannotCompile, match="view that crosses pieces"):
        _split(llama, forward)


def test_a_tensor_from_nowhere_is_refused(llama: Any) -> None:
    hidden = torch.ones(128)
    with pytest.raises(CannotCompile, match="hangs nowhere"):
        _split(llama, lambda ids, positions: llama.model.embed_tokens(ids) * hidden)
