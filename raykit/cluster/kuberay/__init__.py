"""Clusters on Kubernetes: a RayCluster that KubeRay's operator brings to life, reached by a port-forward."""
