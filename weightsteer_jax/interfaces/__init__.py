"""Interfaces: what users touch.

cli/  the command `weightsteer`: a module a verb, flags, help
"""
