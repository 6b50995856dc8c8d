"""What a device could do at most: bytes/s of its memory, FLOP/s by the width of its numbers.

Figures are the makers' published ones, dense (no sparsity), of one device as the driver reports it.
Nobody reaches them: a copy on an H200 gets 4.25 of 4.8 TB/s, a large bf16 product 786 of 989
TFLOP/s. `--bandwidth` and `--flops` put measured ones in their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from atom.trace.errors import TraceError

TERA = 1e12


@dataclass(frozen=True, slots=True)
class Ceilings:
    """`bandwidth` in bytes/s, `flops` in FLOP/s by bits of the numbers that are multiplied. 32 bits
    are TF32 where the device has it."""

    device: str
    bandwidth: float
    flops: Mapping[int, float]
    source: str

    def flops_of(self, bits: int) -> float:
        """Of the widest type that is not wider than asked for: what has no unit of its own runs in
        the next wider one."""
        wider = [width for width in self.flops if width >= bits]
        return self.flops[min(wider)] if wider else self.flops[max(self.flops)]


def _card(bandwidth_tb: float, **tflops: float) -> tuple[float, dict[int, float]]:
    names = {"tf32": 32, "fp32": 32, "bf16": 16, "fp8": 8, "fp4": 4}
    return bandwidth_tb * TERA, {names[name]: value * TERA for name, value in tflops.items()}


# Part of the device's name -> ceilings; the first that fits, so longer names stand first.
_CARDS: dict[str, tuple[float, dict[int, float]]] = {
    "MI355X": _card(8.0, fp32=157.3, bf16=2516.6, fp8=5033.2, fp4=10066.3),
    "MI350X": _card(8.0, fp32=144.2, bf16=2306.9, fp8=4613.7, fp4=9227.5),
    "MI325X": _card(6.0, tf32=653.7, bf16=1307.4, fp8=2614.9),
    "MI300X": _card(5.3, tf32=653.7, bf16=1307.4, fp8=2614.9),
    "MI300A": _card(5.3, tf32=490.3, bf16=980.6, fp8=1961.2),
    "MI250X": _card(
        1.6384, fp32=47.9, bf16=191.5
    ),  # one of its two dies, which is a device of its own
    "MI210": _card(1.6384, fp32=45.3, bf16=181.0),
    "GB200": _card(8.0, tf32=1250.0, bf16=2500.0, fp8=5000.0, fp4=10000.0),
    "B200": _card(8.0, tf32=1125.0, bf16=2250.0, fp8=4500.0, fp4=9000.0),
    "H200": _card(4.8, tf32=494.7, bf16=989.4, fp8=1978.9),
    "H100 NVL": _card(3.938, tf32=417.5, bf16=835.5, fp8=1670.5),
    "H100 PCIe": _card(2.039, tf32=378.0, bf16=756.0, fp8=1513.0),
    "H100": _card(3.35, tf32=494.7, bf16=989.4, fp8=1978.9),
    "H20": _card(4.0, tf32=74.0, bf16=148.0, fp8=296.0),
    "L40S": _card(0.864, tf32=183.2, bf16=362.1, fp8=733.0),
    "L4": _card(0.3, tf32=60.0, bf16=121.0, fp8=242.5),
    "A100-SXM4-80GB": _card(2.039, tf32=156.0, bf16=312.0),
    "A100 80GB": _card(1.935, tf32=156.0, bf16=312.0),
    "A100-SXM4-40GB": _card(1.555, tf32=156.0, bf16=312.0),
    "A100-PCIE-40GB": _card(1.555, tf32=156.0, bf16=312.0),
}


def ceilings_of(
    device: str, bandwidth: float | None = None, flops: float | None = None
) -> Ceilings:
    """Of the device that a trace names. `bandwidth` in TB/s and `flops` in TFLOP/s replace the
    published ones, `flops` for numbers of every width.

    Raises `TraceError` for a device that is not known, unless both are given.
    """
    for option, value in (("--bandwidth", bandwidth), ("--flops", flops)):
        if value is not None and not value > 0:
            raise TraceError(f"{option} must be above 0, got {value:g}")
    found = next((card for name, card in _CARDS.items() if _is(device, name)), None)
    if found is None and (bandwidth is None or flops is None):
        named = f"of {device}" if device else "of the trace's device, which it does not name,"
        raise TraceError(
            f"the ceilings {named} are not known; give --bandwidth TB/s and --flops TFLOP/s "
            f"(known: {', '.join(sorted(_CARDS))})"
        )
    made = Ceilings(device, *(found or (0.0, {16: 0.0})), source="published")
    if bandwidth is not None:
        made = replace(made, bandwidth=bandwidth * TERA, source="given")
    if flops is not None:
        made = replace(made, flops={16: flops * TERA}, source="given")
    if (bandwidth is None) != (flops is None):
        made = replace(made, source="published and given")
    return made


def _is(device: str, card: str) -> bool:
    """Whether the words of `card` stand in `device`: "L4" is no "L40S"."""
    words = device.replace("_", " ").split()
    wanted = card.split()
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words))) or (
        "-" in card and card in device
    )
