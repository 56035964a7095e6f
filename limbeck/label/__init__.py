"""From a teacher to a store: local, remote, votes, rejection sampling."""
