"""`detr-batch bench gpu`: all that a GPU can tell, in one command."""
