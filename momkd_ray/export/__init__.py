"""Hands models over: ONNX and PyTorch programs, one archive of an ensemble with its card, and predictions for STAMP."""
