"""The server under Ray on a real local cluster. `make test-ray` makes the environment that it runs in."""
