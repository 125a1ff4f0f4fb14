"""weightsteer_jax: find a behaviour's direction in weight space, turn it up and down, and hand it on."""
__version__ = '0.1.0'
