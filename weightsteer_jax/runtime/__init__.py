"""What every program stands on: errors, pytrees, the mesh, processes, and how they end.

errors.py         the errors a user can meet, with their exit codes
messages.py       words that messages share: near names, lists cut short, sizes
hashes.py         SHA-256 of text and files
tree.py           pytrees named by path: flatten, strict get, masks, fingerprints
sharding.py       the mesh, and the two tables that say how arrays lie on it
processes.py      several processes: how they join, speak and agree
ending.py         how they end together, and how a stuck one is noticed
progress.py       lines of a stage and bars, on the main process
preemption.py     SIGTERM and SIGINT, noted and acted on at the next step
profiling.py      a window of a run as a profile
compile_cache.py  compiled programs, kept for the next run in the user's cache folder
"""
