"""The measurements of scripts/benchmark.py, one file a subject."""

BRIDGED = ("resnet18", "convnext_atto", "efficientnet_b0", "swin_tiny_patch4_window7_224")  # of timm's
