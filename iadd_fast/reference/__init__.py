"""The definition of every operator in plain PyTorch: short enough to check by eye, any device.

Every other backend is proved against these functions in float64. They import nothing but torch.
"""
