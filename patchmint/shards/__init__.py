"""The format on disk, both ways, and the commit protocol. No torch, no Ray, no models."""
