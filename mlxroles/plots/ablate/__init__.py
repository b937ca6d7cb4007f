"""Figures of ablation runs."""
