"""Numbers of things in sentences."""


def counted(number: int, noun: str) -> str:
    """The number with its noun, such as "1 image", "2 images" or "0 boxes"."""
    plural = noun + ("es" if noun.endswith(("x", "s")) else "s")
    return f"{number} {noun if number == 1 else plural}"
