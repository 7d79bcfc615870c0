"""Clusters on machines that ssh reaches: a Ray node on each, the door reached through a forwarded port."""
