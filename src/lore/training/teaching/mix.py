"""teach=mix: the distilled adviser acts in imagination; its former name is gate.mix_in_imagination."""

from __future__ import annotations

from lore.training.teaching.teacher import Teacher


class Mix(Teacher):
    """Imagined actions are drawn from pi_mix with PriorNet's advice, by the gate's beta for imagination.

    The gate and its KL control decide how far (`GuidedLearning.imagined_bonus`).
    """

    mixes = True
