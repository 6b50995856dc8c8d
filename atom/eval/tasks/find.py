"""Names to tasks: bundled ones first, then files of the user, then lm-eval's catalogue."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from atom.eval import catalog
from atom.eval.errors import EvalError
from atom.eval.tasks import bundled

Source = Literal["bundled", "lm-eval", "user"]
_NEAREST = 5
_ALIKE = 0.6  # SequenceMatcher's ratio, from which on a name may be a slip of another


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """A task, group or tag that was asked for. Nothing of it is loaded."""

    name: str  # lm-eval's
    kind: catalog.Kind
    source: Source
    entries: tuple[catalog.Entry, ...] = field(default=(), repr=False)  # itself and its members

    @property
    def bundled(self) -> bool:
        """Prompts and data came with atom."""
        return self.source == "bundled"


class TaskInfo(NamedTuple):
    """A line of the list of tasks."""

    name: str
    kind: catalog.Kind
    source: Source
    output_type: str  # "multiple_choice", "loglikelihood", "generate_until"; "" where unknown
    dataset: str  # path on the hub, and its configuration
    num_documents: int | None  # of bundled ones
    num_fewshot: int | None  # of bundled ones: unless said otherwise
    aliases: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    licence: str = ""
    bundled_rows: bool = False  # of lm-eval's: its data set came with atom


def find_tasks(
    names: Iterable[str], *, hub: bool = False, include_path: Path | None = None
) -> list[TaskSpec]:
    """What each of `names` stands for, in their order and each once.

    A bundled name is the bundled task, unless `hub` asks for lm-eval's own, whose data comes from
    the Hugging Face hub. `include_path`: a folder of the user's YAML files; their names come first.
    A name may also be the path of a YAML file. Raises `EvalError` for an unknown name, with the
    nearest ones.
    """
    places = _Places(hub, include_path)
    found: dict[str, TaskSpec] = {}
    for name in names:
        spec = places.find(name)
        found.setdefault(spec.name, spec)
    if not found:
        raise EvalError(
            f"no task given; bundled are {', '.join(bundled_names())} (atom eval tasks lists them)"
        )
    return list(found.values())


def bundled_names() -> list[str]:
    """Tasks and groups that need no network."""
    return [*bundled.TASKS, *bundled.GROUPS]


def list_tasks(pattern: str | None = None, *, include_path: Path | None = None) -> list[TaskInfo]:
    """Bundled tasks; with a pattern (`*` and `?`, else a part of the name) all that match it."""
    rows = [_bundled_info(name) for name in bundled_names()]
    user = _user_catalog(include_path)
    if pattern is None:
        known: Mapping[str, catalog.Entry] = user
    else:
        known = {**catalog.lm_eval_catalog(), **user}
        rows = [row for row in rows if any(_match(n, pattern) for n in (row.name, *row.aliases))]
    ours = {row.name for row in rows}
    for name in sorted(known):
        if name not in ours and (pattern is None or _match(name, pattern)):
            rows.append(_info(known[name], "user" if name in user else "lm-eval"))
    return rows


def _match(name: str, pattern: str) -> bool:
    if any(sign in pattern for sign in "*?["):
        return fnmatch.fnmatchcase(name.lower(), pattern.lower())
    return pattern.lower() in name.lower()


def _bundled_info(name: str) -> TaskInfo:
    if name in bundled.GROUPS:
        group = bundled.GROUPS[name]
        count = sum(bundled.num_documents(member) for member in group.members)
        licences = {bundled.TASKS[member].licence for member in group.members}
        return TaskInfo(
            name, "group", "bundled", "", "", count, None, (), group.members, ", ".join(licences)
        )
    task = bundled.TASKS[name]
    return TaskInfo(
        name,
        "task",
        "bundled",
        task.config["output_type"],
        _dataset(*task.hub),
        bundled.num_documents(name),
        task.config.get("num_fewshot", 0),
        tuple(alias for alias, target in bundled.ALIASES.items() if target == name),
        (),
        task.licence,
    )


def _info(entry: catalog.Entry, source: Source) -> TaskInfo:
    dataset = _dataset(entry.dataset_path, entry.dataset_name)
    ours = source == "lm-eval" and bundled.has_rows_of(entry.dataset_path, entry.dataset_name)
    return TaskInfo(
        name=entry.name,
        kind=entry.kind,
        source=source,
        output_type=entry.output_type,
        dataset=dataset,
        num_documents=None,
        num_fewshot=None,
        members=entry.members,
        bundled_rows=ours,
    )


def _dataset(path: str, name: str | None) -> str:
    return f"{path}, {name}" if name else path


def _user_catalog(include_path: Path | None) -> catalog.Catalog:
    if include_path is None:
        return {}
    if not include_path.is_dir():
        raise EvalError(
            f"--include-path {include_path}: no such folder; give the one that holds the YAML files"
        )
    found = catalog.read_folder(include_path.resolve())
    if not found:
        raise EvalError(
            f"--include-path {include_path}: no YAML file below it has a key task or group"
        )
    return found


class _Places:
    """Where names are looked up; lm-eval's catalogue is read when a name needs it."""

    def __init__(self, hub: bool, include_path: Path | None) -> None:
        self._hub = hub
        self._user = _user_catalog(include_path)
        self._all: Mapping[str, catalog.Entry] | None = None

    def find(self, asked: str) -> TaskSpec:
        name = asked.strip()
        if name in self._user:
            return self._spec(name, {**self._lm_eval_if_needed(name), **self._user}, "user")
        name = bundled.ALIASES.get(name, name)
        if name in bundled.GROUPS:
            if self._hub:
                raise EvalError(
                    f"{name} is a group of bundled tasks, which lm-eval does not have: leave --hub "
                    f"out, or name its members: {' '.join(bundled.GROUPS[name].members)}"
                )
            return TaskSpec(name, "group", "bundled")
        if name in bundled.TASKS and not self._hub:
            return TaskSpec(name, "task", "bundled")
        if name.endswith((".yaml", ".yml")):
            return self._file(name)
        known = self._lm_eval()
        if name not in known:
            raise EvalError(_unknown(asked, known, self._user))
        return self._spec(name, known, "lm-eval")

    def _lm_eval(self) -> Mapping[str, catalog.Entry]:
        if self._all is None:
            self._all = catalog.lm_eval_catalog()
        return self._all

    def _lm_eval_if_needed(self, name: str) -> Mapping[str, catalog.Entry]:
        """A group of the user's may name tasks of lm-eval."""
        ours = catalog.leaves(self._user, name)
        names = {member for entry in ours for member in entry.members}
        return self._lm_eval() if names - self._user.keys() else {}

    def _spec(self, name: str, known: Mapping[str, catalog.Entry], source: Source) -> TaskSpec:
        return TaskSpec(name, known[name].kind, source, tuple(catalog.leaves(known, name)))

    def _file(self, name: str) -> TaskSpec:
        path = Path(name).expanduser()
        if not path.is_file():
            raise EvalError(
                f"{name}: no such file; give a task's name or the path of its YAML file"
            )
        found = catalog.read_file(path.resolve())
        if found is None:
            raise EvalError(f"{name} defines no task: it needs a key `task` or `group`")
        known = {**(self._lm_eval() if found.members else {}), **self._user, found.name: found}
        return self._spec(found.name, known, "user")


def _unknown(
    name: str, known: Mapping[str, catalog.Entry], user: Mapping[str, catalog.Entry]
) -> str:
    if not name.strip():
        return "a task's name is empty; atom eval tasks lists what there is"
    near = nearest(name, [*bundled_names(), *bundled.ALIASES, *user, *known])
    hint = f"nearest are {', '.join(near)}" if near else "nothing is spelled like it"
    return (
        f"no task is called {name!r}: {hint}; atom eval tasks PATTERN searches {len(known)} names"
    )


def nearest(name: str, names: Sequence[str]) -> list[str]:
    """The names that are spelled most like `name`, the likeliest first, the earlier of equals."""
    wanted = name.strip().lower()
    matcher = difflib.SequenceMatcher(b=wanted)
    ranked = []
    for place, other in enumerate(dict.fromkeys(names)):
        inside = len(wanted) > 2 and wanted in other.lower()
        matcher.set_seq1(other.lower())
        if not inside and (matcher.real_quick_ratio() < _ALIKE or matcher.quick_ratio() < _ALIKE):
            continue
        likeness = matcher.ratio()
        if inside or likeness >= _ALIKE:
            ranked.append((-likeness - (0.25 if inside else 0.0), len(other), place, other))
    return [other for *_, other in sorted(ranked)[:_NEAREST]]
