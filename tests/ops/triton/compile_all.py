"""Compile kernels ahead of time for both kinds of GPU: `python compile_all.py [MODULE ...]`.

Names are those of `signatures/`; all of them by default. Prints one line of JSON per kernel and
target, with the error if there is one. Runs without a GPU, and not under the interpreter.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "signatures"
CUDA_ONLY = ("PDL", "PACKED", "TF32X3")  # constexprs that are False for ROCm
CUDA_OPTIONS = ("launch_pdl", "maxnreg")


def rows_of(name: str, slow: bool = False) -> list[Any]:
    """`SIGNATURES` of a module, or those that it keeps in `SLOW_SIGNATURES`."""
    spec = importlib.util.spec_from_file_location(f"signatures_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    rows: list[Any] = module.SLOW_SIGNATURES if slow else module.SIGNATURES
    return rows


def compile_for(target: str, row: Any) -> Any:
    """The compiled kernel of one row. Arguments of the kernel that no signature names are
    constants, and sizes are taken to be multiples of 16, as Triton finds them in a launch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    kernel, signature, constants, options = row
    constants, options = dict(constants), dict(options)
    gpu = GPUTarget("cuda", 90, 32)
    if target == "hip":
        gpu = GPUTarget("hip", "gfx942", 64)
        constants.update({name: False for name in CUDA_ONLY if name in constants})
        options = {name: value for name, value in options.items() if name not in CUDA_OPTIONS}
    types = {**signature, **dict.fromkeys(constants, "constexpr")}
    names = kernel.arg_names
    assert set(names) == set(types), f"arguments without a type: {set(names) ^ set(types)}"
    attrs = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, kind in types.items()
        if kind.startswith("*") or kind in ("i32", "i64")
    }
    source = (GluonASTSource if kernel.is_gluon() else ASTSource)(
        kernel,
        signature={name: types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=attrs,
    )
    return triton.compile(source, target=gpu, options=options)


def main() -> None:
    arguments = sys.argv[1:]
    slow = "--slow" in arguments
    names = [a for a in arguments if not a.startswith("-")]
    for name in names or sorted(path.stem for path in FOLDER.glob("*.py")):
        for row in rows_of(name, slow):
            # Gluon spells out one machine's instructions: ours are for NVIDIA.
            for target in ("cuda",) if row[0].is_gluon() else ("cuda", "hip"):
                report: dict[str, Any] = {"module": name, "kernel": row[0].__name__}
                report |= {"target": target, "constants": str(row[2]), "error": None}
                try:
                    compile_for(target, row)
                except Exception as error:
                    report["error"] = f"{type(error).__name__}: {error}"[-2000:]
                print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
