"""One message out, one reply in: what carries frames between a client, a Node and a Network."""
