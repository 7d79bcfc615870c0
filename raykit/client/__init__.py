"""The near side: what a person calls from a notebook or a program. No ray here; a cluster is reached by its door."""
