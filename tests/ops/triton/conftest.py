"""Kernels run on a GPU where there is one, else on CPU tensors under Triton's interpreter.

Which of the two is settled by `tests/conftest.py`, before a test module imports a kernel. The
interpreter is slow: tests ask `on_gpu` for bigger shapes.

The interpreter of Triton 3.6 has three faults that are mended here: it cannot loop to a bound that
is computed in the kernel (numpy 2.4 refuses its conversion), it does not round to bfloat16 and
float8 as GPUs do, and its dot multiplies the bits of bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch


def _mend_interpreter() -> None:
    import triton.language as tl
    from triton.runtime import interpreter

    torch_types = {
        tl.float32: torch.float32,
        tl.float16: torch.float16,
        tl.bfloat16: torch.bfloat16,
        tl.float8e4nv: torch.float8_e4m3fn,
        tl.float8e5: torch.float8_e5m2,
        tl.float8e4b8: torch.float8_e4m3fnuz,
    }
    integers = {1: (np.uint8, torch.uint8), 2: (np.int16, torch.int16), 4: (np.int32, torch.int32)}
    patch_tensor, convert = interpreter._patch_lang_tensor, interpreter._convert_float

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def convert_float(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        """Round to nearest even; float8 saturates."""
        if source not in torch_types or target not in torch_types:
            return convert(data, source, target, rounding)
        given, wanted = torch_types[source], torch_types[target]
        bits = np.ascontiguousarray(data).view(integers[given.itemsize][0])
        values = torch.from_numpy(bits.copy()).view(given).float()
        if wanted.itemsize == 1:
            values = values.clamp(-torch.finfo(wanted).max, torch.finfo(wanted).max)
        out = values.to(wanted).view(integers[wanted.itemsize][1]).numpy()
        return out.view(getattr(np, f"uint{8 * wanted.itemsize}")).reshape(data.shape)

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        """Operands in float32; the interpreter multiplies the bits of bfloat16."""
        sides = [
            x.data if x.dtype == tl.float32 else
            interpreter._convert_float(x.data, x.dtype, tl.float32, None).view(np.float32)
            for x in (a, b)
        ]  # fmt: skip
        return interpreter.TensorHandle(np.matmul(*sides) + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter._patch_lang_tensor = patch_lang_tensor
    interpreter._convert_float = convert_float


if not torch.cuda.is_available():
    _mend_interpreter()


@pytest.fixture(scope="session")
def device() -> str:
    """Where the kernels' tensors go."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def on_gpu(device: str) -> bool:
    return device == "cuda"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
