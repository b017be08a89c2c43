"""A data set's images and instances as files of other tools."""
