"""The audit: reads every input once and lists all of its faults."""
