"""`detr-batch bench gpu`: all that a GPU can tell, in one command."""

# Each is a module here with `run(context)`. The most valuable come first.
STEPS = ("ceilings", "gates", "bits", "rates", "mix", "peers", "choices", "flow")
