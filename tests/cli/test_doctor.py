"""`atom doctor` on a directory that holds only a configuration, and on nothing usable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_helpers import atom

from atom.engine import doctor

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setenv("ATOM_NATIVE", "0")
    monkeypatch.setenv("ATOM_CACHE_DIR", str(tmp_path / "cache"))
    return path


def test_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = atom(capsys, "doctor", "--json", str(model), "--device", "cpu")
    found = json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    plan = found["memory"]
    per_layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64
    assert plan["parameters"] == 2 * 256 * 64 + 3 * per_layer + 64
    assert plan["weights_bytes"] == 2 * plan["parameters"]
    item = {"bfloat16": 2, "float32": 4}[plan["kv_cache_dtype"]]
    assert plan["kv_bytes_per_token"] == 3 * 2 * 2 * 16 * item
    assert plan["kv_bytes"] == plan["kv_tokens"] * plan["kv_bytes_per_token"]
    assert plan["problem"] is None
    kernels = {k["op"]: k["backend"] for k in found["kernels"]}
    attention = {"rotary", "reshape_and_cache", "paged_attention"}
    norms = {"rms_norm", "add_rms_norm"}
    assert set(kernels) == {"embedding", "linear", "silu_and_mul"} | attention | norms
    assert all(kernels.values())
    assert found["machine"]["physical_cores"] >= 1
    assert found["devices"]["chosen"] == "cpu"
    assert {c["name"] for c in found["caches"]} == {"models", "kernels", "compiled"}
    assert found["versions"]["atom"]


def test_what_the_loader_would_refuse(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantised = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config = {**CONFIG, "quantization_config": quantised}
    (model / "config.json").write_text(json.dumps(config))
    ran = atom(capsys, "doctor", "--json", str(model), "--device", "cpu")
    plan = json.loads(ran.out)["memory"]
    assert ran.code == 1
    assert plan["problem"].startswith("quantised safetensors (fp8: FP8 in blocks of 128 x 128)")
    config = {**CONFIG, "layer_types": ["sliding_attention"] * 3}
    (model / "config.json").write_text(json.dumps(config))
    ran = atom(capsys, "doctor", "--json", str(model), "--device", "cpu")
    assert "layer_types sliding_attention is not" in json.loads(ran.out)["memory"]["problem"]


def test_for_people(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = atom(capsys, "doctor", str(model), "--num-kvcache-blocks", "8")
    assert ran.code == 0
    for part in ("machine", "devices", "kernels", "caches", "memory plan", "paged_attention"):
        assert part in ran.out
    assert "fits     128 tokens" in ran.out


def test_the_embedded_model_is_not_fetched(
    model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ran = atom(capsys, "doctor", "--json")
    found = json.loads(ran.out)
    assert ran.code == 0
    assert "has not been fetched yet" in found["no_model"]
    assert found["memory"] is None
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_a_sick_machine_is_described_not_refused(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATOM_MAX_NUM_SEQ", "3")
    ran = atom(capsys, "doctor", str(model))
    assert ran.code == 1
    assert "did you mean ATOM_MAX_NUM_SEQS?" in ran.out
    assert "memory plan" in ran.out


def test_a_model_that_cannot_fit(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    huge = {**CONFIG, "hidden_size": 2**20, "intermediate_size": 2**22}
    (model / "config.json").write_text(json.dumps(huge))
    ran = atom(capsys, "doctor", "--json", str(model), "--device", "cpu")
    assert ran.code == 1
    assert "choose a smaller or quantised model" in json.loads(ran.out)["memory"]["problem"]


@pytest.mark.parametrize("target", ["no/such/place.gguf", "not a model"])
def test_a_model_that_is_not_there(
    target: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = atom(capsys, "doctor", "--json", target)
    assert target in json.loads(ran.out)["no_model"]
    assert ran.code == 1


def test_a_gpu_s_plan_sets_the_largest_step_aside(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = (("a GPU", 10 * 2**30),)
    found = doctor.Devices("cuda", "a test", gpus, 1, "none")
    monkeypatch.setattr(doctor, "find_devices", lambda _: found)
    ran = atom(
        capsys, "doctor", "--json", str(model), "--device", "cuda", "--max-num-seqs", "99999"
    )
    plan = json.loads(ran.out)["memory"]
    # 16384 tokens of two hidden vectors each, and as many rows of 256 logits in four arrays.
    peak = max(16384 * (2 * 64 + 3 * 128) * 2, 16384 * 64 * 2 * 2 + 16384 * 256 * (2 + 12))
    assert plan["activations_bytes"] == peak + 256 * 2**20 + int(0.05 * peak)
    beside = plan["weights_bytes"] + plan["activations_bytes"] + plan["kv_bytes"]
    block = 16 * plan["kv_bytes_per_token"]
    assert 0 <= int(0.9 * gpus[0][1]) - beside < block
    capsys.readouterr()
    ran = atom(capsys, "doctor", str(model), "--device", "cuda")
    assert "for the largest step, with a reserve" in " ".join(ran.out.split())
