"""The process that roots the trees: rounds, liveness, retrieval of lost meta knowledge, aggregation."""
