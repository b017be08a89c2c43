"""The embedded default: scenes with known truth, and small models that were trained on them."""
