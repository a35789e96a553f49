"""Public networks, converted and compared with themselves."""
