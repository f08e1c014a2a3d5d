"""SIMULATED serving: the real scheduler of server/engine on replicas whose runner only keeps time."""
