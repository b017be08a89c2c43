"""Models that turn an image into discrete codes."""
