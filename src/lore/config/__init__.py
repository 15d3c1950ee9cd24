"""The options of a run: plain dataclasses, what they may be, the arms of a study, and Hydra's side of it."""
