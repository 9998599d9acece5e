"""Files of pictures and sound-less video to uint8 tensors and back; knows no task and no network."""
