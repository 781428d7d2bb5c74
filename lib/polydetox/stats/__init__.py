"""Statistics of what is measured: the bootstrap, comparisons before and after, agreement and correlation."""
