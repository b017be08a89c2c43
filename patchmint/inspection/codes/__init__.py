"""Which images contain a code, and what goes with it: an inverted index, asked."""
