"""Random networks, converted and compared with themselves."""
