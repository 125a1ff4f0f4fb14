"""The ground of every program: errors, messages, pytrees, the mesh, processes.

errors.py         the errors a user can meet, with their exit codes
messages.py       words shared by messages: near names, lists cut short, sizes
redaction.py      texts and settings without secrets
json_text.py      JSON that others wrote, every fault of it one kind of error
hashes.py         SHA-256 of text and files
tree.py           pytrees named by path: flatten, strict get, masks, fingerprints
mesh_shape.py     the shape of a mesh as text
sharding.py       the mesh, and the two tables by which arrays lie on the mesh
processes.py      several processes: joining, speaking and agreeing
ending.py         ending together, and noticing a stuck process
log.py            what a run says, kept in its workdir
compiling.py      seconds spent compiling, and whether a program is being compiled
progress.py       lines of a stage and bars, on the main process
signals.py        SIGTERM: a flag that work asks, and an end in time where no work asks
preemption.py     SIGTERM and SIGINT, noted and acted on at the next step
profiling.py      a window of a run as a profile
compile_cache.py  compiled programs, kept for the next run in the user's cache folder
"""
