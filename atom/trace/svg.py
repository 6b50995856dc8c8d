"""Small SVG drawings that stand alone: a card with its own background, light or dark by the
reader's preference, no scripts, no fonts to load."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape, quoteattr

WIDTH = 760
# Mid-tones: they stand out from both backgrounds, and from their neighbours in this order.
COLOURS = {
    "gemm": "#3b82f6",
    "attention": "#f59e0b",
    "moe": "#10b981",
    "norm": "#8b5cf6",
    "activation": "#ec4899",
    "rope_cache": "#14b8a6",
    "sampling": "#ef4444",
    "elementwise": "#a3a30d",
    "reduction": "#c2853a",
    "copy": "#64748b",
    "memset": "#94a3b8",
    "communication": "#d946ef",
    "other": "#78716c",
}
_STYLE = """
.card{fill:#ffffff;stroke:#d0d7de}
text{fill:#1f2328;font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
.dim{fill:#59636e}.title{font-weight:600;font-size:13px}.small{font-size:10px}
.axis{stroke:#8c959f;stroke-width:1}.grid{stroke:#8c959f;stroke-opacity:.25;stroke-width:1}
.on{fill:#ffffff}
@media (prefers-color-scheme: dark){
.card{fill:#0d1117;stroke:#30363d}text{fill:#e6edf3}.dim{fill:#9198a1}.on{fill:#ffffff}}
"""


class Svg:
    """A drawing in the making; y grows downwards, numbers are pixels."""

    def __init__(self, height: float, label: str) -> None:
        self.height, self.label = height, label
        self.items: list[str] = []

    def rect(
        self, x: float, y: float, w: float, h: float, fill: str, title: str = "", opacity: float = 1
    ) -> None:
        inner = f"<title>{escape(title)}</title>" if title else ""
        faint = f' fill-opacity="{opacity:g}"' if opacity < 1 else ""
        self.items.append(
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(w, 0.05):.2f}" height="{h:.2f}" '
            f'fill="{fill}"{faint}>{inner}</rect>'
        )

    def dot(self, x: float, y: float, fill: str) -> None:
        self.items.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{fill}" fill-opacity=".75"/>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, cls: str = "axis") -> None:
        self.items.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{cls}"/>'
        )

    def text(
        self, x: float, y: float, text: str, cls: str = "", anchor: str = "start", turn: float = 0
    ) -> None:
        kind = f" class={quoteattr(cls)}" if cls else ""
        turned = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
        where = f' text-anchor="{anchor}"' if anchor != "start" else ""
        self.items.append(
            f'<text x="{x:.1f}" y="{y:.1f}"{kind}{where}{turned}>{escape(text)}</text>'
        )

    def legend(self, x: float, y: float, entries: list[tuple[str, str]]) -> float:
        """(colour, text) side by side, broken into lines; gives the y below them."""
        left = x
        for colour, text in entries:
            width = 22 + text_width(text)
            if left + width > WIDTH - 16 and left > x:
                left, y = x, y + 18
            self.rect(left, y - 9, 10, 10, colour)
            self.text(left + 15, y, text, "dim")
            left += width + 8
        return y + 18

    def render(self) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{self.height:.0f}" '
            f'viewBox="0 0 {WIDTH} {self.height:.0f}" role="img" '
            f"aria-label={quoteattr(self.label)}>\n<style>{_STYLE}</style>\n"
            f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" '
            f'height="{self.height - 1:.0f}" rx="6"/>\n' + "\n".join(self.items) + "\n</svg>\n"
        )


def text_width(text: str, size: float = 12) -> float:
    """About, in pixels: nothing measures fonts here."""
    return 0.56 * size * len(text)


def ticks(high: float, count: int = 4) -> list[float]:
    """Round numbers from 0 to at least `high`."""
    if high <= 0:
        return [0.0, 1.0]
    raw = high / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    return [step * i for i in range(math.ceil(high / step - 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten round a range of positive numbers."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**p for p in range(first, max(last, first + 1) + 1)]
