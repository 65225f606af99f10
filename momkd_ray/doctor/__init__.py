"""Checks of the machines: software, processors, memory, storage, ports, and whether a cluster's nodes agree."""
