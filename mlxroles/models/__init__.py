"""Models: finding, loading, checking and running any architecture of mlx_lm."""
