"""From a slice to the model frame and back: views, resampling, boxes, rendered microbatches."""
