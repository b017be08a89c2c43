"""From image files and texts to annotations: what every runner does with its share of the work."""
