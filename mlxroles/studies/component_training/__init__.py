"""Training of a model's components as a run: the study, and what it leaves behind."""
