"""Teachers: models that are asked, and files that keep what a model answered."""
