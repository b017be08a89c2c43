"""Where workers run: child processes, or Ray actors."""
