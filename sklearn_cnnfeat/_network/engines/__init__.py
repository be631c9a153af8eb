"""What runs a network: OpenVINO on a CPU, or the network's own framework.

An engine has a `batch_size` and ``run(batches, deliver)``: it takes (tokens, pixels) pairs from an
iterator and calls ``deliver(token, rows)`` once for each image, where `rows` holds one array for
each head. The arrays are the engine's own: `deliver` copies what it keeps.
"""
