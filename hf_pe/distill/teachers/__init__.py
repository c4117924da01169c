"""Teachers: models that run on each batch (`LiveTeacher`), and files with a model's outputs (`CachedTeacher`)."""
