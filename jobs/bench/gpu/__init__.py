"""`detr-batch bench gpu`: all measurements of a GPU, in one command."""

# Each step is a module here with `run(context)`. The most valuable steps come first.
STEPS = ("ceilings", "gates", "bits", "rates", "mix", "peers", "choices", "flow")
