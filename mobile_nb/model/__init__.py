"""The only floor that knows transformers: finding MoE layers, running experts from slots, loading, tiny models."""
