"""Role metrics from stored attention entropies: RFC, RSI, heads, candidates, correlations."""
