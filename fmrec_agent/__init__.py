"""One agent: an overlay node, a local data set, a dispatcher and a retriever of meta knowledge, and a learner."""
