"""What a step is called in a trace, and its parts. `atom.trace.labels` reads it back."""

from __future__ import annotations

from typing import Any

import numpy as np

from atom.engine.marks import Marks
from atom.engine.plan import StepPlan


def step_label(plan: StepPlan, graph: int = 0) -> str:
    """E.g. "prefill[bs=1 tok=115 ctx=115 sk=115 sqsk=13225 sqsq=13225 graph=128]".

    A row that computes one token is a decode (`d`), any other a prompt (`p`): what it costs, not
    who asked for it. `ctx` are the tokens that each row knows at the end of the step. `sk`, `sqsk`
    and `sqsq` are sums over rows of k, q * k and q * q, with q tokens computed and k known.
    `graph`: size of the graphs that run the step; 0: none do. Steps of warm-up begin "dummy_".
    """
    q = plan.num_scheduled.astype(np.int64)
    k = plan.num_computed + q
    decodes = int((q == 1).sum())
    prompts = len(q) - decodes
    fields: dict[str, object] = {"bs": len(q), "tok": int(q.sum())}
    if prompts and decodes:
        fields["p"] = prompts
    if decodes:
        fields["d"] = decodes
    if prompts:
        fields["ctx"] = _lengths(k.tolist())
    fields["sk"] = int(k.sum())
    if prompts:
        fields["sqsk"], fields["sqsq"] = int((q * k).sum()), int((q * q).sum())
    if graph:
        fields["graph"] = graph
    kind = "prefill" if prompts else "decode"
    dummy = "" if plan.step else "dummy_"  # steps of requests count from 1
    return f"{dummy}{kind}[{' '.join(f'{name}={value}' for name, value in fields.items())}]"


def _lengths(known: list[int]) -> str:
    if len(known) == 1:
        return str(known[0])
    shown = known if len(known) <= 5 else known[:3]
    rest = [f"+{len(known) - len(shown)}"] if len(shown) < len(known) else []
    return f"[{','.join([*map(str, shown), *rest])}]"


def of_step(marks: Marks, runner: Any, args: tuple[Any, ...]) -> str:
    """For the runner's methods of (plan, size)."""
    plan, size = args
    return step_label(plan, size)
