"""Clusters on machines of Amazon's cloud."""
