"""Makes small stand-ins for real models and data: tiny configs, random weights, example inputs."""
