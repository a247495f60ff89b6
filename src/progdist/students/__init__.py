"""What students are written as: model folders, LoRA files, ONNX."""
