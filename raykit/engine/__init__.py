"""What runs in the cluster: the only rooms that import ray."""
