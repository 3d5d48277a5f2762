"""`detr-batch bench model` and `bench pipeline` on images of COCO's sizes."""
