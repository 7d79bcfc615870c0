"""Clusters on machines that a cloud rents."""
