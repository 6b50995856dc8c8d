"""Operations as Triton kernels, for NVIDIA and ROCm."""
