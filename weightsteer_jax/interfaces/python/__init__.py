"""What `import weightsteer_jax as ws` offers: models and directions for a user's own program.

boundary.py    arguments checked, errors without the frames beneath
texts.py       texts in, texts out
by_alpha.py    the table that a sweep gives
direction.py   directions with arithmetic
combination.py sums, merges and projections of directions
held.py        a model in memory, asked under any strengths
model.py       models that are loaded, steered and asked
handover.py    directions between two fine-tunes, and on to other programs
auditing.py    a fine-tune's update, beside known good ones
"""

from weightsteer_jax.interfaces.python.auditing import audit
from weightsteer_jax.interfaces.python.by_alpha import ByAlpha
from weightsteer_jax.interfaces.python.combination import combine
from weightsteer_jax.interfaces.python.direction import SteeringDirection, load_direction
from weightsteer_jax.interfaces.python.handover import between, export
from weightsteer_jax.interfaces.python.model import SteeredModel, Sweep, load
from weightsteer_jax.interfaces.python.texts import Text
