"""The stages of gpu_stages.py, most valuable first; one module each, with `run(emit, device, small)`."""
