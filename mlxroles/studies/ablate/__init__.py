"""Ablations: what a model says, and what its layers write, without some of its parts."""
