"""The plan language, and the executor that turns a plan into the next action."""
