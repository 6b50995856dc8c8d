"""The names of lm-eval's tasks, read from its YAML files without lm-eval's own index.

That index parses each of 14 000 files with all it includes and takes ten seconds; here only the
few keys that tell what a file defines are read, and the result is kept per version and place of
lm-eval. The rules are lm-eval's: files in the order of their paths, the first of two equal names
wins, `group` before `task`, tags name the tasks that carry them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal, NamedTuple

from atom.eval.errors import EvalError

Kind = Literal["task", "group", "tag"]
_KEYS = (
    "task", "group", "tag", "class", "include", "output_type", "dataset_path", "dataset_name"
)  # fmt: skip
_BLOCK = re.compile(
    rf"""^["']?({"|".join(_KEYS)})["']?[ \t]*:(.*(?:\n(?:[ \t#-].*|[ \t]*))*)""", re.MULTILINE
)
_PLAIN = re.compile(r"""[ \t]*("|'|)([A-Za-z_][\w./-]*)\1[ \t]*(?:#.*)?\s*\Z""")
_WORDS_OF_YAML = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
_IGNORED = {"__pycache__", ".ipynb_checkpoints"}
_FORMAT = 1  # of the cache


class Entry(NamedTuple):
    """What one name stands for."""

    name: str
    kind: Kind
    path: str | None = None  # of the YAML file; a tag has none
    output_type: str = ""
    dataset_path: str = ""
    dataset_name: str = ""
    members: tuple[str, ...] = ()  # names, of a group or a tag
    is_class: bool = False  # written in Python


Catalog = dict[str, Entry]


def lm_eval_version() -> str:
    """Raises `EvalError` where lm-eval is not installed."""
    try:
        return metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        raise EvalError(
            "lm-eval is not installed, and it defines the tasks: pip install 'lm-eval>=0.4.12,<0.5'"
        ) from None


def lm_eval_catalog() -> Catalog:
    """All names of the lm-eval that is installed; from the cache after the first time."""
    version = lm_eval_version()
    spec = util.find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0]) / "tasks"
    place = _cache_file(version, root)
    found = _read_cache(place)
    if found is None:
        found = read_folder(root)
        _write_cache(place, found)
    return found


def read_folder(root: Path) -> Catalog:
    """All names that the YAML files below `root` define."""
    reader = _Reader()
    catalog: Catalog = {}
    tags: dict[str, list[str]] = {}
    for path in _yaml_files(root):
        try:
            config = reader.merged(path)
        except (OSError, ValueError):
            continue  # lm-eval passes over what it cannot read, too
        entry = _entry(config, path)
        if entry is None or entry.name in catalog or entry.name in tags:
            continue
        catalog[entry.name] = entry
        if entry.kind == "task":
            for tag in _strings(config.get("tag")):
                if tag in catalog:
                    continue
                tags.setdefault(tag, []).append(entry.name)
    for tag, names in tags.items():
        catalog[tag] = Entry(tag, "tag", members=tuple(sorted(names)))
    return catalog


def read_file(path: Path) -> Entry | None:
    """What one YAML file defines; None where that is nothing."""
    try:
        return _entry(_Reader().merged(path), path)
    except (OSError, ValueError) as error:
        raise EvalError(f"{path} cannot be read as a task: {error}".replace("\n", " ")) from None


def leaves(catalog: Mapping[str, Entry], name: str) -> list[Entry]:
    """The entry of `name` and all that it stands for, however deep; unknown members left out."""
    found: dict[str, Entry] = {}
    waiting = [name]
    while waiting:
        entry = catalog.get(waiting.pop())
        if entry is not None and entry.name not in found:
            found[entry.name] = entry
            waiting.extend(entry.members)
    return list(found.values())


def _yaml_files(root: Path) -> Iterable[Path]:
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _IGNORED]
        found.extend(Path(folder, name) for name in files if name.endswith(".yaml"))
    return sorted(found, key=lambda path: path.as_posix())


class _Reader:
    """The keys of interest of YAML files, with those that they include."""

    def __init__(self) -> None:
        self._own: dict[Path, dict[str, Any]] = {}

    def merged(self, path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
        """Raises `ValueError` for what is no YAML, or includes itself."""
        if path in seen:
            raise ValueError(f"{path} includes itself")
        own = self._own.get(path)
        if own is None:
            own = self._own[path] = _keys(path.read_text(encoding="utf-8"))
        if "include" not in own:
            return own
        merged: dict[str, Any] = {}
        for name in _strings(own["include"]):
            included = Path(os.path.normpath(path.parent / name))
            merged.update(self.merged(included, (*seen, path)))
        merged.update((key, value) for key, value in own.items() if key != "include")
        return merged


def _keys(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for match in _BLOCK.finditer(text):
        plain = _PLAIN.fullmatch(match[2])
        if plain and (plain[1] or plain[2].lower() not in _WORDS_OF_YAML):
            found[match[1]] = plain[2]
        else:
            found[match[1]] = _parsed(f"{match[1]}:{match[2]}")[match[1]]
    return found


def _parsed(text: str) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    def as_text(loader: Any, node: Any) -> str:
        return str(node.value)

    Loader.add_constructor("!function", as_text)
    try:
        tree = yaml.load(text, Loader=Loader)  # noqa: S506 (a safe loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    if not isinstance(tree, dict):
        raise ValueError("no mapping")
    return tree


def _strings(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _entry(config: Mapping[str, Any], path: Path) -> Entry | None:
    is_class = "class" in config
    group = not is_class and "group" in config
    name = config.get("group" if group else "task")
    if not isinstance(name, str) or not name:
        return None
    if group:
        return Entry(name, "group", str(path), members=tuple(_members(config.get("task"))))
    return Entry(
        name,
        "task",
        str(path),
        output_type=str(config.get("output_type") or ""),
        dataset_path=str(config.get("dataset_path") or ""),
        dataset_name=str(config.get("dataset_name") or ""),
        is_class=is_class,
    )


def _members(given: Any) -> Iterable[str]:
    """Of the list of a group: names, or mappings that name a task or a group of their own."""
    for item in given if isinstance(given, list) else []:
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict) and "group" in item:
            yield str(item["group"])
            yield from _members(item.get("task"))
        elif isinstance(item, dict) and "task" in item:
            yield str(item["task"])


def _cache_file(version: str, root: Path) -> Path | None:
    from atom.errors import ConfigError
    from atom.utils.cache import cache_dir

    place = hashlib.sha256(str(root).encode()).hexdigest()[:12]
    try:
        return cache_dir("eval") / f"lm-eval-{version}-{place}-{_FORMAT}.json"
    except ConfigError:
        return None  # a home that cannot be written: two seconds more each time


def _read_cache(path: Path | None) -> Catalog | None:
    if path is None:
        return None
    try:
        rows = json.loads(path.read_bytes())
        entries = [Entry(*row)._replace(members=tuple(row[6])) for row in rows]
    except (OSError, ValueError, TypeError, IndexError):
        return None  # none yet, or damaged: it is written anew
    return {entry.name: entry for entry in entries}


def _write_cache(path: Path | None, catalog: Catalog) -> None:
    if path is None:
        return
    scratch = path.with_suffix(f".{os.getpid()}")
    try:
        scratch.write_text(json.dumps(list(catalog.values())), encoding="utf-8")
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
