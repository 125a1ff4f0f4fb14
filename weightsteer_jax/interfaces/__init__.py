"""Interfaces: what users touch.

cli/      the command `weightsteer`: a module a verb, flags, help
python/   what `import weightsteer_jax as ws` offers
serving/  an OpenAI-compatible server
trackers.py  a finished run told to W&B or MLflow
inspect/  Inspect's logs of our sweeps, and our models as its models
"""
