"""Post-training 8-bit quantization of deployed models, with a report of its cost.

The arithmetic is done by ONNX Runtime's quantizer and by NNCF. This package chooses the layers, feeds the calibration
images, and measures accuracy, latency and the error of each layer.
"""
