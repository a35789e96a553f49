"""How long a forward pass takes, beside everything that a user could deploy instead."""
