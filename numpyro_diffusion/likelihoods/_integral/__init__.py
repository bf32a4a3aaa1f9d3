"""The integral of the denoising error over log-SNR: points, straight paths, control variates."""
