"""How far two sides may differ, and whether they do.

The defaults depend on what is compared; what they rest on is in docs/guides/agree.md. A limit is
passed or missed by the value itself; whether the distance is more than noise is said beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from atom.bench.types import Interval
from atom.eval.agree.findings import Report
from atom.eval.agree.types import Side
from atom.eval.errors import EvalError

BEYOND = 3  # exit code


@dataclass(frozen=True, slots=True)
class Limits:
    """`min_agreement` a share, `max_kl` in nats (mean over places); `why` names the choice."""

    min_agreement: float
    max_kl: float
    why: str


@dataclass(frozen=True, slots=True)
class Missed:
    """A limit that is not kept."""

    what: str  # "agreement", "mean KL", ...
    metric: str
    value: Interval
    limit: float
    higher_is_better: bool

    @property
    def beyond_noise(self) -> bool:
        if self.higher_is_better:
            return self.value.high < self.limit
        return self.value.low > self.limit

    def sentence(self) -> str:
        side = "below" if self.higher_is_better else "above"
        write = "{:.3%}".format if self.higher_is_better else "{:.3g}".format
        noise = (
            "more than the noise"
            if self.beyond_noise
            else "within the noise: more prompts would tell (--num-prompts)"
        )
        return (
            f"{self.what} {write(self.value.value)} is {side} the limit {write(self.limit)}, "
            f"{noise} (95% interval {write(self.value.low)} to {write(self.value.high)})"
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    limits: Limits
    missed: tuple[Missed, ...]

    @property
    def good(self) -> bool:
        return not self.missed


def choose(
    reference: Side, tested: Side, min_agreement: float | None, max_kl: float | None
) -> Limits:
    """What was asked for, else the default for these two."""
    default = default_for(reference.precision, tested.precision)
    asked = [
        name
        for name, value in (("--min-agreement", min_agreement), ("--max-kl", max_kl))
        if value is not None
    ]
    why = default.why if len(asked) < 2 else ""
    return Limits(
        default.min_agreement if min_agreement is None else min_agreement,
        default.max_kl if max_kl is None else max_kl,
        "; ".join(filter(None, [f"asked for by {' and '.join(asked)}" if asked else "", why])),
    )


def check(min_agreement: float | None, max_kl: float | None) -> None:
    """Raise for limits that can be none."""
    if min_agreement is not None and not 0 <= min_agreement <= 1:
        raise EvalError(f"--min-agreement {min_agreement:g}: it is a share, from 0 to 1")
    if max_kl is not None and not max_kl >= 0:
        raise EvalError(f"--max-kl {max_kl:g}: it is in nats and not below 0")


def default_for(ours: str, theirs: str) -> Limits:
    if ours == theirs == "float32":
        return Limits(0.999, 1e-6, "default for float32 against float32")
    if ours and ours == theirs:
        return Limits(0.97, 4e-3, f"default for {ours} against {theirs}")
    known = f"{ours or 'unknown'} against {theirs or 'unknown'} precision"
    return Limits(0.93, 2e-2, f"default for {known}")


def judge(report: Report, limits: Limits) -> Verdict:
    """The same limits hold for scoring and for the decode path."""
    held = [
        ("agreement", "agree/top1,none", report.agreement, limits.min_agreement, True),
        ("mean KL", "agree/mean_kl,none", report.mean_kl, limits.max_kl, False),
    ]
    if report.decode is not None:
        decode = report.decode
        held += [
            ("decode agreement", "agree/decode_top1,none", decode.agreement,
             limits.min_agreement, True),
            ("decode mean KL", "agree/decode_mean_kl,none", decode.mean_kl, limits.max_kl, False),
        ]  # fmt: skip
    missed = [
        Missed(what, metric, value, limit, higher)
        for what, metric, value, limit, higher in held
        if (value.value < limit if higher else value.value > limit)
    ]
    return Verdict(limits, tuple(missed))
