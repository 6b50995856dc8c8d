"""Times, shares and sizes as people read them."""

from __future__ import annotations


def duration(ns: float) -> str:
    """As upstream's summary: "x.xx ms" from 1000 us on, else "x.x us"; seconds from 10 s on."""
    us = ns / 1000
    if us >= 10_000_000:
        return f"{us / 1e6:,.2f} s"
    return f"{us / 1000:,.2f} ms" if us >= 1000 else f"{us:.1f} us"


def percent(share: float) -> str:
    """One decimal near both ends, where it tells: "3.4%", "42%", "98.7%"; never "100%" or "0%" for
    what is not all or nothing."""
    value = share * 100
    if 0 < value < 0.05:
        return "<0.1%"
    if 99.95 <= value < 100:
        return ">99.9%"
    return f"{value:.1f}%" if 0 < value < 9.95 or 90 <= value < 100 else f"{value:.0f}%"


def count(number: int, what: str) -> str:
    """ "1 step", "2,000 steps"."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def size(nbytes: float) -> str:
    """Of messages: powers of two, as they are chosen."""
    for unit, least in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= least:
            return f"{nbytes / least:.3g} {unit}"
    return f"{nbytes:.0f} B"
