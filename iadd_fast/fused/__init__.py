"""The ConvNet family on the fused operators: its passes, and training by them."""
