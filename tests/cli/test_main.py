"""The `atom` command itself: light, lazy, one line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from cli_helpers import atom, atom_process, clean_environment

from atom._version import __version__
from atom.cli.main import COMMANDS
from atom.config.support import REFUSED_FLAGS

HEAVY = ("torch", "transformers", "fastapi", "numpy", "huggingface_hub", "msgspec", "uvicorn")
IMPORTED = """
import sys
from atom.cli.main import main
main({argv!r})
sys.stderr.write(" ".join(m for m in {heavy!r} if m in sys.modules))
"""


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["serve", "--help"], ["bench", "--help"], ["version"]]
)
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = IMPORTED.format(argv=argv, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=60,
    )
    imported = set(done.stderr.split())
    allowed = {"msgspec"} if argv[0] in ("serve", "bench") else set()
    assert imported <= allowed, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    ran = atom(capsys, name, "--help")
    assert ran.code == 0
    assert f"Usage: atom {name}" in ran.out
    assert COMMANDS[name][1].rstrip(".") in " ".join(ran.out.split())


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    ran = atom(capsys, "--help")
    assert ran.code == 0
    for name, (_, line) in COMMANDS.items():
        assert name in ran.out
        assert line in ran.out


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    ran = atom(capsys)
    assert ran.code == 2
    assert "Usage: atom" in ran.out + ran.err
    assert "error" not in ran.err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["serv"], "no such command 'serv'. Did you mean 'serve'? (see atom --help)"),
        (["--verion"], "unknown option --verion (did you mean --version?); see atom --help"),
        (
            ["serve", "--max-num-seq", "1"],
            "unknown option --max-num-seq (did you mean --max-num-seqs?); see atom serve --help",
        ),
        (["serve", "--max-num-seqs", "0"], "--max-num-seqs must be at least 1, got 0"),
        (["serve", "--max_num_seqs", "x"], "--max-num-seqs must be an integer, got 'x'"),
        (["serve", "--dtype", "fp4"], "--dtype must be one of auto, bfloat16, float16, float32"),
        (["serve", "-dp", "2"], "--data-parallel-size is refused: data parallelism is not in"),
        (["serve", "a", "--model", "b"], "two models: a and --model b; give one"),
        (["serve", "nowhere.toml"], "nowhere.toml: cannot read the recipe: No such file"),
        (["serve", "--max-num-seqs"], "requires an argument"),
        (["serve", "a", "b"], "got unexpected extra argument"),
        (["recipe", "chck"], "no such command 'chck'. Did you mean 'check'?"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = atom(capsys, *argv)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith(f"atom: error: {says}"[: len("atom: error: ")])
    assert says in ran.err
    assert ran.err.count("\n") == 1
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("name", REFUSED_FLAGS)
@pytest.mark.parametrize("snake", [False, True])
def test_flags_of_other_engines_are_refused_with_the_reason(
    name: str, snake: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    spelled = "--" + (name.replace("-", "_") if snake else name)
    ran = atom(capsys, "serve", spelled, "x")
    assert ran.code == 2
    assert f"is refused: {REFUSED_FLAGS[name]}" in ran.err


def test_a_bug_of_ours_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("atom.cli.serve.resolve_target", broken)
    ran = atom(capsys, "serve")
    assert (ran.code, ran.out) == (70, "")
    assert ran.err.startswith("atom: error: internal error: KeyError: 'x' (ATOM_DEBUG=1")
    monkeypatch.setenv("ATOM_DEBUG", "1")
    with pytest.raises(KeyError):
        atom(capsys, "serve")


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert atom(capsys, "--version").out == f"atom {__version__}\n"
    assert __version__ in atom(capsys, "version").out
    found = json.loads(atom(capsys, "version", "--json").out)
    assert found["atom"] == __version__
    assert {"python", "torch", "transformers"} <= set(found)


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m atom.cli recipe schema --json | head -c 1 > /dev/null"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=clean_environment(), timeout=60
    )
    assert done.stderr == ""


def test_completion_knows_commands_flags_and_choices() -> None:
    def complete(words: str) -> str:
        return atom_process(
            _ATOM_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" "))
        ).out

    assert "serve" in complete("atom se")
    assert "--max-num-seqs" in complete("atom serve --max-num-s")
    assert complete("atom serve --dtype b").split() == ["bfloat16"]
