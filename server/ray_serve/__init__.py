"""The same server in several processes under Ray Serve: an engine in each, one door in front of them all."""
