"""The tree as JSON."""

from __future__ import annotations

import json

import pytest

from atom.config import Config, resolve
from atom.config.serial import changed, from_json, public_tree, to_json
from atom.errors import ConfigError

FLAGS = {
    "model": "some/model",
    "api_key": "k1,k2",
    "max_model_len": 77,
    "overlap": True,
    "kv_cache_memory_gb": 0.5,
}


def test_round_trip() -> None:
    for config in (Config(), resolve(None, {}, FLAGS)):
        assert from_json(to_json(config)) == config


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"engine": {}}',
        to_json(Config()).replace(b"max_num_seqs", b"max_num_cows"),
        to_json(Config()).replace(b'"port":8000', b'"port":"8000"'),
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match="not the JSON of a configuration"):
        from_json(data)


def test_what_is_printed_hides_secrets() -> None:
    config = resolve(None, {}, FLAGS)
    printed = json.dumps(public_tree(config)) + str(changed(config))
    assert "k1" not in printed
    assert public_tree(config)["server"]["api_key"] == "***"
    assert public_tree(Config())["server"]["api_key"] == []
    assert changed(config) == {
        "model.model": "some/model",
        "model.max_model_len": "77",
        "engine.kv_cache_memory_gb": "0.5",
        "engine.overlap": "true",
        "server.api_key": "***",
    }
