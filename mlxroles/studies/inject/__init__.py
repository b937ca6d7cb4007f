"""The injection study: a direction is added to the residual stream, and what that does is measured.

``battery`` reads questions, ``items`` makes prompts with their injected positions out of them,
``readout`` turns logits into numbers, ``source`` says where the directions come from, ``injection``
is the study itself; ``scores`` tests against controls and random vectors, ``document`` sums up and
``attention`` looks at the strongest cell. ``results`` writes files and knows no model.
"""
