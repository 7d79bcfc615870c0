"""The door's protocol and its client: the one way into a cluster for kernel, panel and mirror."""
