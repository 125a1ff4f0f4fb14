"""Inspect, the evaluation framework: our sweeps as its logs, our models as its models.

logs.py      a finished sweep as logs that Inspect's viewer opens
provider.py  a steered model in this process as a model of Inspect

Source: inspect_ai 0.3.285.
"""
