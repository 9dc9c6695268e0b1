"""8-bit quantization of deployed models, after training or with fine-tuning, and a report of its cost.

The arithmetic is done by ONNX Runtime's quantizer and by NNCF, in fine-tuning by torch's fake quantization. This
package chooses the layers, feeds the calibration images, and measures accuracy, latency and the error of each layer.
"""
