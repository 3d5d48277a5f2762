"""`detr-batch bench`: the attention, a detector and the whole pipeline, beside their peers."""
