"""Human key points with SimplePose (Xiao et al. 2018)."""
