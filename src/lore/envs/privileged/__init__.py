"""The only readers of the true state of a world: the oracle, shaping, skills, distances."""
