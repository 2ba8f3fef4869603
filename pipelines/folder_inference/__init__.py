"""A model on any folder of files: predicting it and scoring it, without the asset graph."""
