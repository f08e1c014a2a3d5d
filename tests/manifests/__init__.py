"""The Kubernetes manifests: as kustomize builds them, against this code and against the published schemas."""
