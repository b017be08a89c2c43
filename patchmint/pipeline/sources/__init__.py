"""Data sets as people have them -> samples. One module a format."""
