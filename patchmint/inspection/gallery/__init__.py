"""A data set as a page that people can look through: a folder that needs no server, or the same served on demand."""
