"""COCO's files as detection and pose share them: annotations, images, and the scores of results."""
