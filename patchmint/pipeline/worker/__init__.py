"""The worker: a unit of the plan becomes a shard."""
