"""Statistics of a data set, as numbers, plots and a page."""
