"""OWLv2 (arXiv 2306.09683): a detector that is told phrases. `arch` needs no torch."""
