"""The driver: hands out units, watches workers, and writes the manifest."""
