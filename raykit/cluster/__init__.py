"""Where a cluster runs. Nothing here imports ray: heads are processes, reached by their door."""
