"""Formats of students: model folders, LoRA files, ONNX."""
