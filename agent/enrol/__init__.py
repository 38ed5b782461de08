"""How a host becomes a node: a bundle made where the authority's key is (`invite`), taken in on the host (`join`)."""
