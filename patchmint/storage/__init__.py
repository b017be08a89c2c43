"""Folders and object stores behind one interface: local, s3, gs, az."""
