"""One file per kind of study: what its cells are, what they hold, and how they are computed."""
