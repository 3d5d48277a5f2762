"""The folder of sitecustomize.py, for PYTHONPATH of processes that faults are to happen in."""

from pathlib import Path

INJECTED = Path(__file__).parent
