"""Doors: the sockets through which people and other machines reach a Node, a Network, or this notebook server."""
