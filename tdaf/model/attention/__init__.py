"""Attention mechanisms of other publications, a file each; `placement` says where in a backbone each of them goes."""
