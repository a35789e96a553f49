"""What a linear region is: `AffineConv`, one convolution of one tensor, and the laws by which it grows.

Takes kernels, biases and geometry; gives values that say exactly which convolution they are, at every input size. It
knows nothing of graphs, modules or costs: a law either holds for every size or raises a `Refusal`.
"""
