"""What a linear region is: `AffineConv`, one convolution of one tensor, and the laws by which such values combine.

Takes kernels, biases and geometry. Gives values that say exactly which convolution they are, at every input size, and
the layers that compute them. It knows nothing of graphs, modules or costs, and never approximates: a law holds for
every size or raises a `Refusal`. Read `affine.py` first.
"""
