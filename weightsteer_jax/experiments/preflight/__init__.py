"""Whether a run fits hardware that is not there yet, and what the run costs there.

The run's real programs are compiled from shapes alone.

topology.py   chips, pods of them by name, and devices to compile for without having them
memory.py     bytes of a program's arrays, by kind
hlo.py        collectives of a compiled program
roofline.py   operations and bytes by formula, and the time at the hardware's peaks
programs.py   the programs of a run, with shapes in place of arrays
run.py        the programs compiled
search.py     other meshes, batches and rematerialisation
report.py     table, verdict and advice in words
examine.py    a preflight from the flags to the verdict
"""

from weightsteer_jax.experiments.preflight.examine import examine, recommend
from weightsteer_jax.experiments.preflight.programs import RunPlan, Sizes, plan
from weightsteer_jax.experiments.preflight.run import Result, check
from weightsteer_jax.experiments.preflight.search import candidates, search
from weightsteer_jax.experiments.preflight.topology import CHIPS, Chip, Hardware, find_hardware
