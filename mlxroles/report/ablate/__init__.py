"""Reports of ablation runs."""
