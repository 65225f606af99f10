"""Batches: sampling, prefetching and collating bags for training steps."""
