"""One sample: found by its key, with texts, labels and codes made ready to look at."""
