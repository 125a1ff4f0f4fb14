"""Equal budgets: the strength at which each direction spends what may be spent, on both sides of 0.

measures.py  what is spent: divergence from the base, its worst tokens, perplexity
search.py    the strength that spends a budget, bracketed and closed in on
run.py       from texts and directions to a table, files and a page
"""

from weightsteer_jax.experiments.calibration.run import Options, calibrate, table
