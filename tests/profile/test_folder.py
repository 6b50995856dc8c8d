"""The folder of a profile: named, checked, and what may be written into it."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from atom.profile import folder
from atom.profile.errors import ProfileError

NOW = datetime(2026, 1, 31, 14, 30, tzinfo=timezone.utc)


def test_a_name_where_none_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = folder.choose(None, "org/A model", NOW)
    assert str(made) == "profile-A_model-20260131-143000"
    assert made.is_dir()
    assert folder.choose(tmp_path / "x" / "y", "m", NOW).is_dir()


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ProfileError, match=r"^--output-dir .*/file/x: Not a directory$"):
        folder.make(tmp_path / "file" / "x")


def test_the_document_is_whole_under_its_name(tmp_path: Path) -> None:
    path = folder.write(tmp_path, {"a": "ü"})
    assert json.loads(path.read_text("utf-8")) == {"a": "ü"}
    folder.write(tmp_path, {"a": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["profile.json"]


def test_paths_within_move_with_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "rank_0" / "a.json.gz"
    assert folder.relative(tmp_path, [inside, "/elsewhere/b"]) == [
        "rank_0/a.json.gz",
        "/elsewhere/b",
    ]


def test_sizes_are_estimated_by_kind(tmp_path: Path) -> None:
    sizes = folder.Sizes(tmp_path)
    assert not sizes.knows("decode")
    assert sizes.estimate("decode", 1000) == 0
    assert sizes.refusal("decode", 1000) == sizes.warning("decode", 1000) == ""
    sizes.add("decode", 2, 1_000_000)
    assert sizes.estimate("decode", 8) == 4_000_000
    assert sizes.estimate("prefill", 8) == 0
    assert sizes.warning("decode", 599) == ""
    assert "about 400 MB" in sizes.warning("decode", 800)


def test_what_would_be_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = folder.Sizes(tmp_path)
    sizes.add("decode", 2, 10_000_000)
    assert sizes.refusal("decode", 390) == ""
    assert sizes.refusal("decode", 400) == (
        "about 2 GB more, and 2 GB is the most of one profile; --steps 398 would fit"
    )
    usage: Any = type("usage", (), {"free": 1_000_000_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert sizes.refusal("decode", 8) == ""
    assert sizes.refusal("decode", 11) == (
        "about 55 MB, 1.1 GB before it is compressed, and the disk has 1 GB; --steps 10 would fit"
    )


@pytest.mark.parametrize(
    ("size", "text"), [(12, "12 B"), (1234, "1.23 KB"), (41_500_000, "41.5 MB"), (2e9, "2 GB")]
)
def test_sizes_as_people_read_them(size: float, text: str) -> None:
    assert folder.size_text(size) == text
