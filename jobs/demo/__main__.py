"""`python -m jobs.demo FOLDER`, which `make demo` runs."""

import argparse
from pathlib import Path

from jobs.demo.demo import demo

parser = argparse.ArgumentParser(prog="python -m jobs.demo", description=demo.__doc__)
parser.add_argument("folder", type=Path)
parser.add_argument("--images", type=int, default=240)
parser.add_argument("--usd-per-hour", type=float, default=0.10)
arguments = parser.parse_args()
raise SystemExit(demo(arguments.folder, arguments.images, arguments.usd_per_hour))
