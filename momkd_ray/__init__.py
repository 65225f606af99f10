"""MoMKD (Momentum Memory Knowledge Distillation, CVPR 2026) trained, cross-validated and run on Ray."""

__version__ = "0.1.0"
