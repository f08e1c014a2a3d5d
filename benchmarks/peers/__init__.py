"""The peers: other servers, each in its own environment, the formats they need, and how they are started."""
