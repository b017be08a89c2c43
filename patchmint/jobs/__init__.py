"""What `ray job submit` and `patchmint build` start."""
