"""What only training needs: the joint step, weight decay of equivalent kernels, and the penalty."""
