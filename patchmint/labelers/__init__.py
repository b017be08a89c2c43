"""Models that say which patches a text talks about."""
