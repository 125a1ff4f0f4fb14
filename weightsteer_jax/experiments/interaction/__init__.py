"""Several directions on several behaviours: what each moves, what all move at once.

mixes.py      the directions as they are swept: alone, together, and orthogonal to the others
effects.py    the matrix of effects with errors, from the sweep's rows
run.py        finished runs to rows, effects and a summary

The page is experiments/report/interaction_page.py.
"""

from weightsteer_jax.experiments.interaction.run import interact
