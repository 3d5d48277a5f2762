"""`python -m jobs.cli`: the same as `detr-batch`."""

import sys

from jobs.cli import main

sys.exit(main())
