"""Models that leave the project: ONNX, torch.export and AOTInductor, compared before they are written."""
