"""The option that names columns of INPUT which `images` carries along."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class CarryOptions:
    """Which columns of INPUT become columns of `images`."""

    carry: str | None = field(
        default=None,
        metadata={
            "metavar": "NAMES",
            "help": "columns of INPUT that `images` gets too, such as split,caption or "
            "score:float: of Parquet rows, of json members beside the images of tars, of lists",
        },
    )

    def check_carry(self) -> None:
        """Raise InputError for names that clash, or that cannot be names."""
        from pipeline.plan.carry_choice import parse_carry  # pyarrow would delay the help

        parse_carry(self.carry)
