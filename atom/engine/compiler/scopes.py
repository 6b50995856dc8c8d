"""Scopes in what Inductor makes of a graph: which module each kernel is called for.

Nodes of the graph have their module's scope (`engine.compiler.trace`). While Inductor writes the
Python module that calls its kernels, it is made to write, ahead of each call, a comment with the
scopes of the nodes that the kernel computes. A comment costs nothing and changes nothing; while a
profile records, the functions that hold such comments get the code of a twin, made of the same
text, in which the calls stand in scopes. The kernels are the same objects.
"""

from __future__ import annotations

import ast
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import fx

from atom.engine.compiler.trace import SCOPE, scope_of

Opener = Callable[[str], Any]  # a scope's context manager by its name
_MARK = "# atom scope:"
_SCOPE, _KERNEL = "_atom_scope", "_atom_kernel"  # in the module's globals: what opens
# The profiler sees no call of these: torch's dispatcher does not know Inductor's C++ kernels.
_UNSEEN = re.compile(r"cpp_")
# Called by a name alone, and no kernel.
_ALLOCATES = re.compile(r"empty_strided|reinterpret_tensor|alloc_from_pool")
_BEFORE = "copy_if_misaligned"  # stands before the mark of the kernel that it is for


def why_not() -> str | None:
    """None: this torch has what is needed. It is all but public, so it is looked at closely."""
    try:
        from torch._inductor.codecache import PyCodeCache
        from torch._inductor.codegen.wrapper import PythonWrapperCodegen
        from torch._inductor.pattern_matcher import ReplacementPatternEntry
        from torch._inductor.scheduler import BaseScheduling, Scheduler
    except ImportError as error:
        return str(error)
    needed = (
        (torch.fx.traceback, "annotate"),
        (Scheduler, "codegen_extern_call"),
        (BaseScheduling, "codegen_comment"),
        (PythonWrapperCodegen, "writeline"),
        (PyCodeCache, "load_by_key_path"),
        (ReplacementPatternEntry, "replace_with_graph"),
    )
    missing = [f"{owner.__name__}.{name}" for owner, name in needed if not hasattr(owner, name)]
    return f"torch {torch.__version__} has no {', '.join(missing)}" if missing else None


# -- names ----------------------------------------------------------------------------------------


def _is_view(node: fx.Node) -> bool:
    return bool(getattr(node.target, "is_view", False))


def _calls(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """In the graph's order."""
    return sorted(node for node in nodes if node.op == "call_function")


def _joined(nodes: Iterable[fx.Node]) -> str:
    parts = (part for node in nodes for part in scope_of(node).split("+"))
    return "+".join(dict.fromkeys(part for part in parts if part))


def _work_of(nodes: Iterable[fx.Node]) -> str:
    """Views alone are nobody's work."""
    calls = _calls(nodes)
    return _joined(node for node in calls if not _is_view(node)) or _joined(calls)


def _irs(schedule: Any) -> Iterator[Any]:
    """What Inductor's scheduler holds, taken apart."""
    if isinstance(schedule, list | tuple):
        for part in schedule:
            yield from _irs(part)
    elif hasattr(schedule, "get_nodes"):
        nodes = (getattr(part, "node", None) for part in schedule.get_nodes())
        yield from (node for node in nodes if node is not None)


def scope_of_kernel(schedule: Any) -> str:
    """Of a kernel that Inductor writes: of all nodes that it computes. Of one that it calls: of its
    own node, for with Inductor the origins of its arguments count as its own."""
    from torch._inductor.ir import ComputedBuffer

    computed: set[fx.Node] = set()
    called: set[fx.Node] = set()
    for ir in _irs(schedule):
        if isinstance(ir, ComputedBuffer):
            computed.update(ir.origins)
        else:
            node = ir.get_origin_node() or next(reversed(_calls(ir.origins)), None)
            called.update([] if node is None else [node, *_views_of_weights(node)])
    if not called:
        return _work_of(computed)
    return _joined(_calls(called | {node for node in computed if not _is_view(node)}))


def _views_of_weights(reader: fx.Node) -> list[fx.Node]:
    """Where a kernel stands for several nodes, as a product and a sum, they know the product."""
    return [view for arg in reader.all_input_nodes for view in _views_of_weight(arg)]


def _views_of_weight(node: fx.Node) -> list[fx.Node]:
    views = []
    while _is_view(node) and node.all_input_nodes:
        views.append(node)
        node = node.all_input_nodes[0]
    return views if node.op in ("placeholder", "get_attr") else []


# -- while Inductor writes ------------------------------------------------------------------------


class Written(NamedTuple):
    modules: list[ModuleType]  # that were loaded
    failures: list[Exception]  # of our own, for which the compiler must not fail


@contextmanager
def noting() -> Iterator[Written]:
    """What Inductor writes within says of its kernels whose they are."""
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.codegen.common import init_backend_registration
    from torch._inductor.pattern_matcher import ReplacementPatternEntry
    from torch._inductor.scheduler import BaseScheduling, Scheduler
    from torch._inductor.virtualized import V

    written = Written([], [])

    def before(method: Any) -> Any:
        @wraps(method)
        def run(self: Any, schedule: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                wrapper: Any = V.graph.wrapper_code
                wrapper.writeline(f"{_MARK} {scope_of_kernel(schedule)}")
            except Exception as error:  # whatever this torch has otherwise: it compiles
                written.failures.append(error)
            return method(self, schedule, *args, **kwargs)

        return run

    load, replace = PyCodeCache.load_by_key_path, ReplacementPatternEntry.replace_with_graph

    def loading(*args: Any, **kwargs: Any) -> Any:
        written.modules.append(load(*args, **kwargs))
        return written.modules[-1]

    def replacing(match: Any, graph: fx.Graph, *args: Any, **kwargs: Any) -> None:
        scope, old = _work_of(match.nodes), set(graph.nodes)
        replace(match, graph, *args, **kwargs)
        for node in graph.nodes:
            if scope and node not in old:
                node.meta["custom"] = {**node.meta.get("custom", {}), SCOPE: scope}

    init_backend_registration()
    with ExitStack() as stack:

        def put(owner: Any, name: str, value: Any) -> None:
            stack.callback(setattr, owner, name, vars(owner)[name])
            setattr(owner, name, value)

        put(PyCodeCache, "load_by_key_path", staticmethod(loading))
        put(ReplacementPatternEntry, "replace_with_graph", staticmethod(replacing))
        extern = Scheduler.codegen_extern_call
        put(Scheduler, "codegen_extern_call", before(extern))
        for kind in _with_subclasses(BaseScheduling):
            if "codegen_comment" in vars(kind):
                comment = vars(kind)["codegen_comment"]
                put(kind, "codegen_comment", before(comment))
        yield written


def _with_subclasses(kind: type) -> list[type]:
    below: list[type] = kind.__subclasses__()
    return [kind, *(kind for each in below for kind in _with_subclasses(each))]


# -- the twin -------------------------------------------------------------------------------------


class Twin:
    """The functions of a module that Inductor wrote, as they are and with scopes."""

    def __init__(
        self, module: ModuleType, functions: list[tuple[FunctionType, CodeType, CodeType]]
    ) -> None:
        self._globals = vars(module)
        self._functions = functions

    def on(self, scope: Opener, kernel: Opener) -> None:
        """`kernel` opens round kernels that torch's dispatcher does not know."""
        self._globals.update({_SCOPE: scope, _KERNEL: kernel})
        for function, _, marked in self._functions:
            function.__code__ = marked

    def off(self) -> None:
        for function, plain, _ in self._functions:
            function.__code__ = plain
        for name in (_SCOPE, _KERNEL):  # torch keeps the module, which would keep the openers
            self._globals.pop(name, None)


def twin_of(module: ModuleType) -> Twin | None:
    """None: nothing in it has a name. A module that two engines share has one twin."""
    kept: Twin | None = getattr(module, "_atom_twin", None)
    if kept is not None or module.__file__ is None:
        return kept
    text = Path(module.__file__).read_text(encoding="utf-8")
    marks = {
        number: line.partition(_MARK)[2].strip()
        for number, line in enumerate(text.splitlines(), 1)
        if line.lstrip().startswith(_MARK)
    }
    if not any(marks.values()):
        return None
    tree = ast.parse(text)
    places = list(_rewrite(tree, marks))
    code = compile(ast.fix_missing_locations(tree), module.__file__, "exec", dont_inherit=True)
    functions = []
    for place in places:
        function = _function(module, place)
        functions.append((function, function.__code__, _code(code, place)))
    twin = Twin(module, functions)
    vars(module)["_atom_twin"] = twin
    return twin


def _rewrite(tree: ast.Module, marks: dict[int, str]) -> Iterator[tuple[str, ...]]:
    """Rewrites functions that hold marks, and yields where they are."""
    for outer in tree.body:
        inner = outer.body if isinstance(outer, ast.ClassDef) else [outer]
        for function in inner:
            if isinstance(function, ast.FunctionDef) and _holds(function, marks):
                function.body = _Body(marks).rewritten(function.body, function.lineno)
                own = (function.name,)
                yield (outer.name, *own) if isinstance(outer, ast.ClassDef) else own


def _function(module: ModuleType, place: tuple[str, ...]) -> FunctionType:
    found: Any = module
    for name in place:
        found = vars(found)[name]
    assert isinstance(found, FunctionType), place
    return found


def _code(code: CodeType, place: tuple[str, ...]) -> CodeType:
    for name in place:
        inside = (const for const in code.co_consts if isinstance(const, CodeType))
        code = next(const for const in inside if const.co_name == name)
    return code


def _holds(node: ast.stmt, marks: dict[int, str]) -> bool:
    return any(node.lineno <= number <= (node.end_lineno or node.lineno) for number in marks)


class _Body:
    """Statements put into the scopes that the marks above them name."""

    def __init__(self, marks: dict[int, str]) -> None:
        self._marks = marks
        self._lines = sorted(marks)

    def rewritten(self, body: list[ast.stmt], start: int) -> list[ast.stmt]:
        """`start`: marks above that line do not count."""
        done: list[ast.stmt] = []
        last = ""  # the scope that is open
        # What is to follow, if it is in the same scope, goes in; plain statements wait for that.
        waiting: list[ast.stmt] = []
        for each in body:
            if getattr(each, "body", None) and _holds(each, self._marks):
                each.body = self.rewritten(each.body, each.lineno)  # type: ignore[attr-defined]
                done += [*waiting, each]
                waiting, last, start = [], "", (each.end_lineno or each.lineno) + 1
                continue
            scope = self._scope(each, start)
            if not scope:
                waiting.append(each)
            elif scope == last:
                done[-1].body += [*waiting, self._seen(each)]  # type: ignore[attr-defined]
                waiting = []
            else:
                done += [*waiting, _with(_SCOPE, scope, self._seen(each))]
                waiting, last = [], scope
        return done + waiting

    def _scope(self, each: ast.stmt, start: int) -> str:
        """ "" for what launches nothing."""
        kind = _kind(each)
        if kind == "plain":
            return ""
        index = bisect_right(self._lines, each.lineno)
        if kind == "before":
            return self._marks[self._lines[index]] if index < len(self._lines) else ""
        line = self._lines[index - 1] if index else 0
        return self._marks[line] if line >= start else ""

    def _seen(self, each: ast.stmt) -> ast.stmt:
        name = _called(each)
        return _with(_KERNEL, name, each) if name and _UNSEEN.match(name) else each


def _called(each: ast.stmt) -> str:
    """The name alone by which a statement calls something; "" for none, and for attributes."""
    value = getattr(each, "value", None)
    function = value.func if isinstance(value, ast.Call) else None
    return function.id if isinstance(function, ast.Name) else ""


def _kind(each: ast.stmt) -> str:
    if not isinstance(each, ast.Expr | ast.Assign):
        return "plain"
    if not any(isinstance(node, ast.Call) for node in ast.walk(each)):
        return "plain"
    if isinstance(each.value, ast.Call) and isinstance(each.value.func, ast.Subscript):
        return "plain"  # another function of the module, with marks of its own
    name = _called(each)
    if name == _BEFORE:
        return "before"
    return "plain" if _ALLOCATES.match(name) or name.startswith("assert_") else "kernel"


def _with(opener: str, name: str, body: ast.stmt) -> ast.With:
    call = ast.Call(ast.Name(opener, ast.Load()), [ast.Constant(name)], [])
    return ast.copy_location(ast.With([ast.withitem(call)], [body]), body)
