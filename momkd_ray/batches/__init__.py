"""From bags to the batches of a training step."""
