"""What the project needs besides the package: not installed with it."""
