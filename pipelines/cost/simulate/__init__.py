"""Simulation of a recipe's full run on a cluster: time, bytes, cost and bottleneck of each stage."""
