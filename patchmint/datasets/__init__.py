"""A data set on disk, opened for reading."""
