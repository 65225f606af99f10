"""Ray: clusters, connections and parallel tasks."""
