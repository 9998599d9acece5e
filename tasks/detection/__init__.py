"""Object detection with FCOS (Tian et al. 2019, 2020)."""
