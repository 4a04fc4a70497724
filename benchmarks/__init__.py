"""Side-by-side measurements; each prints a table with ratios, and none is a timed test."""
