"""Numbers, durations and amounts of money as text."""

UNKNOWN = "\N{EN DASH}"


def format_number(value: float | None, digits: int = 0) -> str:
    """Format a number with thousands separators; UNKNOWN for None."""
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def format_figure(value: float | None) -> str:
    """Format a number with three significant digits, or with all digits before the point."""
    if value is None:
        return UNKNOWN
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    digits = 2
    while value < 10 ** (1 - digits) and digits < 8:
        digits += 1
    return f"{value:,.{digits if value < 10 else 1}f}"


def format_duration(seconds: float | None) -> str:
    """Format seconds as `8.4 s`, `12 min 5 s` or `3 h 20 min`."""
    if seconds is None:
        return UNKNOWN
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
