"""ATOM_* variables: each is known, or the user hears of it."""

from __future__ import annotations

import pytest

from atom.config import Config, resolve
from atom.config.environment import PROCESS_VARIABLES, environment_problem, is_service_link
from atom.config.support import REFUSED_ENVIRONMENT
from atom.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ATOM_MAX_NUM_SEQ", r"did you mean ATOM_MAX_NUM_SEQS\?"),
        ("ATOM_", "unknown variable"),
        ("ATOM_XYZZY_PLUGH", "unset it"),
    ],
)
def test_an_unknown_variable_is_an_error(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        resolve(None, {name: "1"})
    assert environment_problem({name: "1"}) is not None


def test_other_programs_variables_and_empty_ones_are_nobody_s_business() -> None:
    env = {"PATH": "/bin", "ATOMIC": "1", "_ATOM_COMPLETE": "x", "ATOM_PORT": "", "ATOM_NOPE": ""}
    assert resolve(None, env) == Config()
    assert environment_problem(env) is None


def test_process_variables_pass() -> None:
    assert resolve(None, {v.name: "1" for v in PROCESS_VARIABLES}) == Config()


def test_process_variables_have_values_too() -> None:
    with pytest.raises(ConfigError, match="ATOM_NATIVE must be one of 0, 1, avx2"):
        resolve(None, {"ATOM_NATIVE": "sse"})


@pytest.mark.parametrize("name", REFUSED_ENVIRONMENT)
def test_variables_without_a_meaning_here_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is refused: "):
        resolve(None, {name: "1"})


def test_kubernetes_service_links_are_left_alone() -> None:
    env = {
        "ATOM_PORT": "tcp://10.0.0.1:8000",
        "ATOM_SERVICE_HOST": "10.0.0.1",
        "ATOM_SERVICE_PORT": "8000",
        "ATOM_SERVICE_PORT_HTTP": "8000",
        "ATOM_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "ATOM_PORT_8000_TCP_ADDR": "10.0.0.1",
        "ATOM_QWEN_SERVICE_HOST": "10.0.0.2",
        "ATOM_QWEN_PORT": "tcp://10.0.0.2:8000",
    }
    assert all(is_service_link(name, value) for name, value in env.items())
    assert resolve(None, env) == Config()
    assert not is_service_link("ATOM_PORT", "8000")


def test_two_spellings_of_one_setting_must_agree() -> None:
    assert resolve(None, {"ATOM_DP_SIZE": "1", "ATOM_DATA_PARALLEL_SIZE": "1"}) == Config()
    with pytest.raises(ConfigError, match="to different values"):
        resolve(None, {"ATOM_SEED": "1", "ATOM_DP_SIZE": "1", "ATOM_DATA_PARALLEL_SIZE": "2"})
