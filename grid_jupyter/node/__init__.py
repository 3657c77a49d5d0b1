"""A Node: data sets, sessions and the gates between them. Knows neither sockets nor torch."""
