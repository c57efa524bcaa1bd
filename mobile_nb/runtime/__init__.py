"""The runtime: configuration, serving a layer, the decode loop, the engine."""
