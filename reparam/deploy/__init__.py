"""A folded model becomes a file, and the file a model again.

This room takes what `reparameterize` returns. `save` writes it as an artefact: weights, and the provenance to rebuild
the folded structure from a fresh training model with `load`. `export` writes a program for another runtime. `undo` goes
back to the training form, and `checkpoint` reads the weights that training scripts leave.

It never runs code from a file, never overwrites a file without being told to, and never leaves half a file behind.
"""
