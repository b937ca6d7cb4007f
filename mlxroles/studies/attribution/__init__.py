"""The attribution study: what is estimated, stored, run exactly, summed up and written.

``sweep`` is one run from the user's words to its files, ``grid`` its cells, ``run`` computes them,
``document`` sums them up; ``results`` writes figures and pages and knows no model.
"""
