"""Interfaces: what users touch."""
