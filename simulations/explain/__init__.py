"""What a smaller model costs and why: each file of a cell measured against its dense model.

Accuracy, size, multiply-adds, latency, and where the two models differ: classes, layers, and what
they look at. Runs files in onnxruntime, which the extra `export` brings.
"""
