"""The bag store: feature files ingested into Parquet, checked for consistency, and read by the workers."""
