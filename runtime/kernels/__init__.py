"""One file per backend of the runtime's array operations; `runtime.kernels.registry` chooses between them.

`runtime.kernels.reference` has every operation in plain NumPy and is what the others are tested against.
"""
