"""How advice enters learning: one class a file, all behind `Teacher`. `teach=NAME` chooses.

    informed    a policy that advice informs stands in place of the uniform one in the entropy bonus
    kickstart   a pull towards the distilled adviser in imagined states
    clone       imitation of advised episodes that succeeded
    mix         the distilled adviser's word is added to the policy in imagination

docs/teaching.md has the formulas. Letters: N states, H imagined steps, F features, A actions.
"""

from __future__ import annotations

from pkgutil import resolve_name

from lore.config.options import TeachOptions
from lore.config.plugins import TEACHERS
from lore.llm.prior_net import PriorNet
from lore.training.teaching.teacher import Teacher

__all__ = ["TEACHERS", "Teacher", "build_teacher"]


def build_teacher(options: TeachOptions, entropy: float, distilled: PriorNet | None) -> Teacher:
    """Build what `teach=NAME` stands for.

    Args:
        options: The options of the group `teach`.
        entropy: Coefficient of the actor's entropy bonus, agent.entropy.
        distilled: The adviser as a network; None without. `lore.config.checks` has refused a teacher that
            lacks it.
    """
    kind: type[Teacher] = Teacher if options.name == "none" else resolve_name(TEACHERS[options.name])
    return kind(options, entropy, distilled)
